// Pictures as bytes, as a model's numbers, and as grids of codes that are rotated.
#pragma once

#include <vector>

#include "common.hpp"

namespace mmada_lite::internal {

// Bytes of 1 or 3 channels, row by row.
struct Raster {
  std::int64_t width, height, channels;
  std::vector<std::uint8_t> bytes;
};

Raster raster_of(const Picture& picture);  // throws where its size and its bytes disagree, or for far too many
Picture picture_from(Raster raster);
Raster fitted(const Raster& image, std::int64_t side, Fit how);  // a square of `side` pixels
Raster fitted_mask(const Raster& mask, std::int64_t side);       // the same of a mask, cut, that loses no stroke

Floats pixels_of(const Raster& image);                                              // [3, H, W] in -1..1
Raster raster_from(const Floats& pixels, std::int64_t width, std::int64_t height);  // and back

Bools cells_under(const Raster& shade, std::int64_t downsample);  // cells of a grid that a mask touches
Codes rotated(const Codes& grid, int quarter_turns);              // counter-clockwise

}  // namespace mmada_lite::internal
