// Pictures: bytes resized and cut as docs/bundle.md says, turned into a model's numbers and back; PPM files.
#include "pictures.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "common.hpp"

namespace mmada_lite::internal {
namespace {

constexpr std::int64_t kLargest = 64'000'000;  // pixels

double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return -0.5 * (((x - 5) * x + 8) * x - 4);
  return 0;
}

// One direction of a bicubic resize with antialiasing, in 22-bit fixed point: of the `size` columns that the width becomes,
// `count` from `from` on. They become rows, so that calling it twice does both directions. A width that stays is copied.
Raster resized_and_transposed(const Raster& image, std::int64_t size, std::int64_t from, std::int64_t count) {
  constexpr int kBits = 22;
  Raster out{image.height, count, image.channels,
             std::vector<std::uint8_t>(static_cast<std::size_t>(image.height * count * image.channels))};
  const double scale = static_cast<double>(image.width) / static_cast<double>(size), filter_scale = std::max(scale, 1.0),
               support = image.width == size ? 0.5 : 2.0 * filter_scale;
  for (std::int64_t x = 0; x < count; ++x) {
    const double centre = (static_cast<double>(x + from) + 0.5) * scale;
    const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
    const auto past = std::min(static_cast<std::int64_t>(centre + support + 0.5), image.width);
    std::vector<double> weights;
    double total = 0;
    for (auto i = first; i < past; ++i) {
      weights.push_back(cubic((static_cast<double>(i) - centre + 0.5) * (1.0 / filter_scale)));
      total += weights.back();
    }
    std::vector<int> fixed;
    for (double w : weights) {
      w = (total != 0 ? w / total : w) * (1 << kBits);
      fixed.push_back(static_cast<int>(w + (w < 0 ? -0.5 : 0.5)));
    }
    for (std::int64_t y = 0; y < image.height; ++y) {
      for (std::int64_t c = 0; c < image.channels; ++c) {
        const std::uint8_t* pixel = image.bytes.data() + (y * image.width + first) * image.channels + c;
        std::int64_t sum = 1 << (kBits - 1);
        for (std::size_t i = 0; i < fixed.size(); ++i) sum += pixel[static_cast<std::int64_t>(i) * image.channels] * fixed[i];
        const auto value = std::clamp<std::int64_t>(sum >> kBits, 0, 255);
        out.bytes[static_cast<std::size_t>((x * image.height + y) * image.channels + c)] = static_cast<std::uint8_t>(value);
      }
    }
  }
  return out;
}

Raster transposed(const Raster& image) { return resized_and_transposed(image, image.width, 0, image.width); }

// One direction of a mask, by maximum: of a column, whatever it overlaps.
Raster largest_and_transposed(const Raster& mask, std::int64_t size, std::int64_t from, std::int64_t count) {
  Raster out{mask.height, count, 1, {}};
  for (auto x = from; x < from + count; ++x) {
    const auto first = x * mask.width / size, past = ((x + 1) * mask.width + size - 1) / size;
    for (auto row = mask.bytes.begin(); row != mask.bytes.end(); row += mask.width) {
      out.bytes.push_back(*std::max_element(row + first, row + past));
    }
  }
  return out;
}

// What a picture is scaled to, and where in it the square begins that is kept.
struct Window {
  std::int64_t width, height, left, top;
};

Window window_of(const Raster& image, std::int64_t side, Fit how) {
  if (how == Fit::squash) return {side, side, 0, 0};
  const auto shorter = std::min(image.width, image.height), longer = std::max(image.width, image.height);
  const auto other = static_cast<std::int64_t>(static_cast<double>(side * longer) / static_cast<double>(shorter));
  if (other > kLargest / side) {
    fail("a picture of ", image.width, " x ", image.height, " pixels is too long to be cut to a square; crop it first");
  }
  const auto rest = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(other - side) / 2.0));
  return image.width <= image.height ? Window{side, other, 0, rest} : Window{other, side, rest, 0};
}

}  // namespace

Raster fitted(const Raster& image, std::int64_t side, Fit how) {
  const auto [width, height, left, top] = window_of(image, side, how);
  if (image.height - height > std::max<std::int64_t>(0, 2 * (image.width - width))) {  // rows first
    const Raster rows = resized_and_transposed(transposed(image), height, top, side);
    return transposed(resized_and_transposed(rows, width, left, side));
  }
  return resized_and_transposed(resized_and_transposed(image, width, left, side), height, top, side);
}

Raster fitted_mask(const Raster& mask, std::int64_t side) {
  const auto [width, height, left, top] = window_of(mask, side, Fit::crop);
  return largest_and_transposed(largest_and_transposed(mask, width, left, side), height, top, side);
}

Raster raster_of(const Picture& picture) {
  const auto needed = std::int64_t{3} * picture.width * picture.height;
  if (picture.width < 1 || picture.height < 1 || static_cast<std::int64_t>(picture.rgb.size()) != needed) {
    fail("the picture is said to be ", picture.width, " x ", picture.height, " pixels and holds ", picture.rgb.size(),
         " bytes; give 3 for each pixel");
  }
  if (needed > 3 * kLargest) {
    fail("the picture has ", picture.width, " x ", picture.height, " pixels; scale it below 64,000,000 pixels");
  }
  return {picture.width, picture.height, 3, picture.rgb};
}

Picture picture_from(Raster raster) {
  return {static_cast<int>(raster.width), static_cast<int>(raster.height), std::move(raster.bytes)};
}

Floats pixels_of(const Raster& image) {
  Floats pixels;
  const auto count = static_cast<std::size_t>(image.width * image.height);
  for (std::size_t c = 0; c < 3; ++c) {
    for (std::size_t i = 0; i < count; ++i) {
      const float share = rounded(static_cast<float>(image.bytes[3 * i + c]) / 255.0f);
      pixels.push_back(rounded(share - 0.5f) / 0.5f);
    }
  }
  return pixels;
}

Raster raster_from(const Floats& pixels, std::int64_t width, std::int64_t height) {
  const auto count = static_cast<std::size_t>(width * height);
  Raster image{width, height, 3, std::vector<std::uint8_t>(3 * count)};
  for (std::size_t i = 0; i < count; ++i) {
    for (std::size_t c = 0; c < 3; ++c) {
      const float share = std::clamp(rounded(rounded(pixels[c * count + i] + 1.0f) / 2.0f), 0.0f, 1.0f);
      image.bytes[3 * i + c] = static_cast<std::uint8_t>(rounded(share * 255.0f));
    }
  }
  return image;
}

Bools cells_under(const Raster& shade, std::int64_t downsample) {
  const std::int64_t columns = (shade.width + downsample - 1) / downsample, rows = (shade.height + downsample - 1) / downsample;
  Bools cells(static_cast<std::size_t>(rows * columns));
  for (std::int64_t y = 0; y < shade.height; ++y) {
    for (std::int64_t x = 0; x < shade.width; ++x) {
      if (shade.bytes[static_cast<std::size_t>(y * shade.width + x)] >= 128) {
        cells[static_cast<std::size_t>(y / downsample * columns + x / downsample)] = 1;
      }
    }
  }
  return cells;
}

Codes rotated(const Codes& grid, int quarter_turns) {
  Codes result = grid;
  for (int turn = 0; turn < ((quarter_turns % 4) + 4) % 4; ++turn) {
    const Codes before = result;
    result = {before.columns, before.rows, {}};
    for (int i = 0; i < result.rows; ++i) {
      for (int j = 0; j < result.columns; ++j) {
        result.ids.push_back(before.ids[static_cast<std::size_t>(j * before.columns + before.columns - 1 - i)]);
      }
    }
  }
  return result;
}

}  // namespace mmada_lite::internal

namespace mmada_lite {

using internal::fail;

Picture read_ppm(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) fail("no picture at ", file, "; check the path");
  std::string magic;
  int numbers[3] = {0, 0, 0};
  stream >> magic;
  for (int& number : numbers) {
    while ((stream >> std::ws).peek() == '#') stream.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    stream >> number;
  }
  stream.get();
  const auto [width, height, most] = numbers;
  if (magic != "P6" || !stream || width < 1 || height < 1 || most != 255 || std::int64_t{width} * height > internal::kLargest) {
    fail(file, " is not a binary PPM (P6) of 8 bits and at most 64,000,000 pixels; convert it");
  }
  Picture picture{
      width, height,
      std::vector<std::uint8_t>(std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height))};
  if (!stream.read(reinterpret_cast<char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()))) {
    fail(file, " is cut short; fetch it again");
  }
  return picture;
}

void write_ppm(const std::string& file, const Picture& picture) {
  internal::raster_of(picture);  // for its errors
  const std::string partial = file + ".partial";
  std::ofstream stream(partial, std::ios::binary);
  stream << "P6\n" << picture.width << ' ' << picture.height << "\n255\n";
  stream.write(reinterpret_cast<const char*>(picture.rgb.data()), static_cast<std::streamsize>(picture.rgb.size()));
  stream.close();
  std::error_code fault;
  if (stream) std::filesystem::rename(partial, file, fault);
  if (stream && !fault) return;
  std::filesystem::remove(partial, fault);
  fail(file, ": cannot be written here; choose another folder");
}

}  // namespace mmada_lite
