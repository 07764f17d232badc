// The model's pictures: painting, inpainting, extending, and codes to pixels and back.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "canvas.hpp"
#include "model.hpp"
#include "sampling.hpp"
#include "schedules.hpp"
#include "unicode.hpp"

namespace mmada_lite {

using namespace internal;

Codes Model::Impl::encode(const Raster& square) const { return {codec.grid(), codec.grid(), codec.encode(pixels_of(square))}; }

Raster Model::Impl::decode(const Codes& codes) const {
  check_codes(codes);
  return raster_from(codec.decode(codes), codes.columns * bundle.downsample, codes.rows * bundle.downsample);
}

Ids Model::Impl::prompt_ids(const std::string& prompt) const {
  const std::string body = stripped(require_utf8(prompt, "prompt"));
  if (body.empty()) fail("the prompt is empty; say what is to be drawn");
  return need_tokenizer().encode(body);
}

ImageSettings Model::Impl::image_settings_for(const Around& row, const Bools& unknown,
                                              const std::optional<ImageSettings>& settings) const {
  ImageSettings s = settings.value_or(bundle.image_defaults);
  check_length(row.before.size(), static_cast<std::int64_t>(unknown.size() + row.behind.size()), "the prompt with its picture");
  const auto open =
      static_cast<std::int64_t>(std::count_if(unknown.begin(), unknown.end(), [](auto flag) { return flag != 0; }));
  if (settings && s.steps > open) fail(s.steps, " steps for ", open, " codes: a step draws at least one; use fewer steps");
  s.steps = std::min(s.steps, open);  // only the default is ever cut
  return s;
}

bool Model::Impl::draw_steps(const Ids& words, const Codes& codes, const Bools& unknown,
                             const std::optional<ImageSettings>& settings, std::uint64_t seed, const Sink& sink) const {
  const Around painted = paint_row(words), nothing = row("unconditional", "codes", {});
  const ImageSettings s = image_settings_for(painted, unknown, settings);
  Canvas canvas = image_canvas(painted, codes.ids, unknown, bundle, s.guidance > 0 ? &nothing.before : nullptr);
  PhiloxSampler sampler(seed, s.sampling_temperature, canvas.start);
  return decode_image(denoiser, canvas, s, sampler, [&](Step&& step) {
    step.predicted_codes.rows = codes.rows;
    step.predicted_codes.columns = codes.columns;
    return sink(std::move(step));
  });
}

Drawing Model::Impl::draw(const Ids& words, const Codes& codes, const Bools& unknown,
                          const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step) const {
  Drawing drawing;
  drawing.stopped = !draw_steps(words, codes, unknown, settings, seed, recorder(drawing, on_step));
  drawing.picture = picture_from(decode(drawing.codes));
  return drawing;
}

Sink Model::Impl::recorder(Drawing& drawing, const OnStep& on_step) {
  return [&drawing, &on_step](Step&& step) {
    drawing.steps = step.index + 1;
    drawing.seconds = step.seconds;
    const bool going = !on_step || on_step(step);
    drawing.codes = std::move(step.predicted_codes);
    return going;
  };
}

namespace {

void check_given(const std::optional<ImageSettings>& settings) {
  if (settings) check(*settings);
}

// The mask as 0 and 255, of the picture's size and with something covered.
Raster checked_mask(const Mask& mask, const Picture& picture) {
  if (mask.shade.size() != static_cast<std::size_t>(mask.width) * static_cast<std::size_t>(mask.height)) {
    fail("the mask is said to be ", mask.width, " x ", mask.height, " pixels and holds ", mask.shade.size(),
         " bytes; give one for each");
  }
  if (mask.width != picture.width || mask.height != picture.height) {
    fail("the mask is ", mask.width, " x ", mask.height, " pixels and the picture ", picture.width, " x ", picture.height,
         "; make them the same size");
  }
  Raster covered{mask.width, mask.height, 1, mask.shade};
  for (auto& shade : covered.bytes) shade = shade >= 128 ? 255 : 0;
  if (std::find(covered.bytes.begin(), covered.bytes.end(), 255) == covered.bytes.end()) {
    fail("the mask covers nothing; paint white what is to be drawn anew");
  }
  return covered;
}

Codes top_rows(const Codes& grid, int rows) {
  return {rows, grid.columns, Ids(grid.ids.begin(), grid.ids.begin() + rows * grid.columns)};
}

Codes filled(int rows, int columns, std::int64_t code) {
  return {rows, columns, Ids(static_cast<std::size_t>(rows * columns), code)};
}

Codes stacked(Codes above, const Codes& below) {
  above.rows += below.rows;
  above.ids.insert(above.ids.end(), below.ids.begin(), below.ids.end());
  return above;
}

// By how many rows of codes a picture grows for a share of its side.
int rows_to_add(double amount, int grid_side) {
  const int rows = amount > 0 && amount <= 4 ? static_cast<int>(std::nearbyint(amount * grid_side)) : 0;
  if (rows >= 1) return rows;
  char least[32];
  std::snprintf(least, sizeof least, "%.3g", 1.0 / grid_side);
  fail("cannot extend by ", shown(amount), "; use a share of the side from ", least, " to 4");
}

void paste(const Raster& square, Picture& picture, std::int64_t left, std::int64_t top) {
  for (std::int64_t y = 0; y < square.height; ++y) {
    std::copy_n(square.bytes.begin() + 3 * y * square.width, 3 * square.width,
                picture.rgb.begin() + 3 * ((y + top) * picture.width + left));
  }
}

}  // namespace

Drawing Model::paint(const std::string& prompt, const std::optional<ImageSettings>& settings, std::uint64_t seed,
                     const OnStep& on_step) const {
  const auto& model = require(impl_);
  check_given(settings);
  const int side = model.codec.grid();
  const Codes empty = filled(side, side, 0);
  return model.draw(model.prompt_ids(prompt), empty, Bools(empty.ids.size(), 1), settings, seed, on_step);
}

Drawing Model::draw(const Ids& words, const Codes& codes, const std::vector<std::uint8_t>& unknown,
                    const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step) const {
  const auto& model = require(impl_);
  check_given(settings);
  model.need_image_tokenizer();
  model.check_ids(words);
  model.check_codes(codes);
  Bools flags;
  for (const auto flag : unknown) flags.push_back(flag != 0);
  if (flags.size() != codes.ids.size())
    fail("there are ", codes.ids.size(), " codes and ", flags.size(), " flags; give one for each cell");
  if (std::find(flags.begin(), flags.end(), 1) == flags.end()) fail("no code is unknown; say what is to be drawn anew");
  return model.draw(words, codes, flags, settings, seed, on_step);
}

Drawing Model::inpaint(const Picture& picture, const Mask& mask, const std::string& prompt,
                       const std::optional<ImageSettings>& settings, std::uint64_t seed, const OnStep& on_step,
                       bool keep_pixels) const {
  const auto& model = require(impl_);
  check_given(settings);
  const Raster original = raster_of(picture);
  const Raster covered = checked_mask(mask, picture);
  model.need_image_tokenizer();
  const std::int64_t side = model.bundle.resolution, cell = model.bundle.downsample;
  const Raster square = fitted(original, side, Fit::crop);
  const Bools cells = cells_under(fitted(covered, side, Fit::crop), cell);
  if (std::find(cells.begin(), cells.end(), 1) == cells.end()) {
    fail("the mask covers nothing of the picture's central square; paint white what is to be drawn anew");
  }
  const Codes codes = model.encode(square);
  Drawing drawing = model.draw(model.prompt_ids(prompt), codes, cells, settings, seed, on_step);
  for (std::int64_t i = 0; keep_pixels && i < side * side; ++i) {
    if (cells[static_cast<std::size_t>(i / side / cell * codes.columns + i % side / cell)]) continue;
    std::copy_n(square.bytes.begin() + 3 * i, 3, drawing.picture.rgb.begin() + 3 * i);
  }
  return drawing;
}

Drawing Model::extend(const Picture& picture, const std::string& prompt, const std::optional<ImageSettings>& settings,
                      Side side, double amount, std::uint64_t seed, const OnStep& on_step, bool keep_pixels) const {
  const auto& model = require(impl_);
  check_given(settings);
  const int grid_side = model.codec.grid(), turns = static_cast<int>(side);
  const int new_rows = rows_to_add(amount, grid_side), most = std::max(1, grid_side / 2);
  const Raster square = fitted(raster_of(picture), model.bundle.resolution, Fit::crop);
  Codes grid = rotated(model.encode(square), turns);  // so that it grows at the top
  const Ids words = model.prompt_ids(prompt);
  const Ids parts = transfers(new_rows, (new_rows + most - 1) / most);  // as few and as equal as can be
  Bools smallest(grid.ids.size());
  std::fill_n(smallest.begin(), parts.back() * grid_side, 1);
  model.image_settings_for(model.paint_row(words), smallest, settings);  // for its errors, before any work
  if (seed > std::numeric_limits<std::uint64_t>::max() - (parts.size() - 1)) {
    fail("the seed is out of range; each of the ", parts.size(), " parts takes the next one, up to 2**64 - 1");
  }
  Drawing drawing;
  const Sink record = Impl::recorder(drawing, on_step);
  const Clock clock;
  for (std::size_t number = 0; number < parts.size() && !drawing.stopped; ++number) {
    const auto part = static_cast<int>(parts[number]);
    const Codes window = stacked(filled(part, grid_side, 0), top_rows(grid, grid_side - part));
    const Ids unknown = rotated(stacked(filled(part, grid_side, 1), filled(grid_side - part, grid_side, 0)), -turns).ids;
    const Codes old = grid;
    const auto steps_before = drawing.steps;
    const Sink sink = [&](Step&& step) {
      grid = stacked(top_rows(rotated(step.predicted_codes, turns), part), old);
      step.predicted_codes = rotated(grid, -turns);
      step.index += steps_before;
      step.total_steps = *step.total_steps * static_cast<std::int64_t>(parts.size());
      step.model_calls += steps_before;
      step.seconds = clock.seconds();
      return record(std::move(step));
    };
    drawing.stopped =
        !model.draw_steps(words, rotated(window, -turns), Bools(unknown.begin(), unknown.end()), settings, seed + number, sink);
  }
  drawing.picture = picture_from(model.decode(drawing.codes));
  const auto left = side == Side::left ? drawing.picture.width - square.width : 0;
  const auto top = side == Side::top ? drawing.picture.height - square.height : 0;
  if (keep_pixels) paste(square, drawing.picture, left, top);
  return drawing;
}

Codes Model::codes_of(const Picture& picture) const {
  const auto& model = require(impl_);
  model.need_image_tokenizer();
  return model.encode(fitted(raster_of(picture), model.bundle.resolution, Fit::crop));
}

Picture Model::picture_of(const Codes& codes) const { return picture_from(require(impl_).decode(codes)); }

}  // namespace mmada_lite
