// Pictures: bytes resized and cut as Pillow does, turned into a model's numbers and back; PPM files.
#include "pictures.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "common.hpp"

namespace mmada_lite::internal {
namespace {

double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return -0.5 * (((x - 5) * x + 8) * x - 4);
  return 0;
}

// One direction of a bicubic resize with antialiasing, in 22-bit fixed point: what Pillow gives, bit for bit. Rows become
// columns, so that calling it twice resizes both directions.
Raster resized_and_transposed(const Raster& image, std::int64_t size) {
  constexpr int kBits = 22;
  Raster out{image.height, size, image.channels,
             std::vector<std::uint8_t>(static_cast<std::size_t>(image.height * size * image.channels))};
  const double scale = static_cast<double>(image.width) / static_cast<double>(size), filter_scale = std::max(scale, 1.0),
               support = 2.0 * filter_scale;
  for (std::int64_t x = 0; x < size; ++x) {
    const double centre = (static_cast<double>(x) + 0.5) * scale;
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
        const std::uint8_t* from = image.bytes.data() + (y * image.width + first) * image.channels + c;
        std::int64_t sum = 1 << (kBits - 1);
        for (std::size_t i = 0; i < fixed.size(); ++i) sum += from[static_cast<std::int64_t>(i) * image.channels] * fixed[i];
        const auto value = std::clamp<std::int64_t>(sum >> kBits, 0, 255);
        out.bytes[static_cast<std::size_t>((x * image.height + y) * image.channels + c)] = static_cast<std::uint8_t>(value);
      }
    }
  }
  return out;
}

Raster transposed(const Raster& image) {
  Raster out{image.height, image.width, image.channels, std::vector<std::uint8_t>(image.bytes.size())};
  for (std::int64_t y = 0; y < image.height; ++y) {
    for (std::int64_t x = 0; x < image.width; ++x) {
      const auto from = image.bytes.begin() + (y * image.width + x) * image.channels;
      std::copy(from, from + image.channels, out.bytes.begin() + (x * image.height + y) * image.channels);
    }
  }
  return out;
}

Raster resized(const Raster& image, std::int64_t width, std::int64_t height) {
  const Raster across = image.width == width ? transposed(image) : resized_and_transposed(image, width);
  return across.width == height ? transposed(across) : resized_and_transposed(across, height);
}

}  // namespace

Raster fitted(const Raster& image, std::int64_t side, Fit how) {
  if (how == Fit::squash) return resized(image, side, side);
  const auto shorter = std::min(image.width, image.height), longer = std::max(image.width, image.height);
  const auto other = static_cast<std::int64_t>(static_cast<double>(side * longer) / static_cast<double>(shorter));
  const bool upright = image.width <= image.height;
  const Raster scaled = resized(image, upright ? side : other, upright ? other : side);
  const auto left = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(scaled.width - side) / 2.0));
  const auto top = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(scaled.height - side) / 2.0));
  Raster out{side, side, image.channels, {}};
  for (std::int64_t y = top; y < top + side; ++y) {
    const auto from = scaled.bytes.begin() + (y * scaled.width + left) * scaled.channels;
    out.bytes.insert(out.bytes.end(), from, from + side * scaled.channels);
  }
  return out;
}

Raster raster_of(const Picture& picture) {
  const auto needed = std::int64_t{3} * picture.width * picture.height;
  if (picture.width < 1 || picture.height < 1 || static_cast<std::int64_t>(picture.rgb.size()) != needed) {
    fail("the picture is said to be ", picture.width, " x ", picture.height, " pixels and holds ", picture.rgb.size(),
         " bytes; give 3 for each pixel");
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
  if (magic != "P6" || !stream || width < 1 || height < 1 || most != 255 || std::int64_t{width} * height > 64'000'000) {
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
