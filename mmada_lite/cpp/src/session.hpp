// A bundle's graphs as functions: the denoiser (a window in, predictions out) and the codec (pictures to codes and back).
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "common.hpp"

namespace mmada_lite::internal {

// Throws where the linked library is too old, or has no such device.
void check_runtime(const std::string& device);

using Values = std::vector<Ort::Value>;

enum class Head { text, image };

// Keys and values of each layer, keys first: what a window attends to beside itself. Keys are rotated, so their order is of no
// consequence. The bytes are those of the graph's type, float32 or float16.
struct Past {
  std::vector<std::vector<std::byte>> tensors;
  std::int64_t length = 0;
};

// Everything but the positions start..stop-1 of keys or values [B, H, P, D].
Past past_without(const Values& keys_and_values, std::int64_t start, std::int64_t stop);

struct Window {
  std::int64_t start = 0, stop = 0;  // the positions that are computed
  Ids tokens;                        // [W]
  Ids queried;                       // [Q] indices into the window
  const Past* past = nullptr;
};

struct Hidden {
  Floats states;  // [R, Q, D]
  std::int64_t branches = 0, queried = 0, width = 0;
};

struct Prediction {
  Ids tokens;              // [Q]
  Floats log_probability;  // [Q], before any temperature
  bool finite = true;      // whether these and the entropies are numbers
};

class Denoiser {
 public:
  Denoiser(const Bundle& bundle, const Options& options);

  std::function<void(const Window&)> watch;  // told of every window, when it is set

  // States of the queried positions; with `kept`, the keys and values of the whole window too.
  Hidden forward(const Window& window, Values* kept) const;

  // The most probable tokens at temperature 0, else a draw by inverse CDF at `draws` [Q]. `mix` [R] combines the branches.
  Prediction predict(Head head, const Hidden& hidden, const Floats& mix, double temperature, const Floats* draws) const;

  // [Q, V]
  Floats logits(Head head, const Hidden& hidden, const Floats& mix) const;

 private:
  using Slot = std::optional<Ort::Session>;

  Values run_head(Head head, const Hidden& hidden, const Floats& mix, double temperature, const Floats* draws,
                  const std::vector<const char*>& output_names) const;

  std::int64_t layers_, heads_, head_dim_;
  ONNXTensorElementDataType kept_;  // the type of keys and values
  mutable Slot embedder_, backbone_, text_head_, image_head_;  // running one is safe from several threads
  std::vector<std::string> names_, past_names_;
};

// The image tokenizer. Its graphs are opened when they are first needed.
class Codec {
 public:
  Codec(const Bundle& bundle, const Options& options) : bundle_(bundle), options_(options) {}

  int grid() const;                        // codes a side of a picture; throws where the bundle has no image tokenizer
  Ids encode(const Floats& pixels) const;  // [3, H, W] of a picture of the bundle's resolution, to grid() x grid() codes
  Floats decode(const Codes& codes) const;

 private:
  std::optional<Ort::Session>& opened(const char* name, std::optional<Ort::Session>& slot) const;

  const Bundle& bundle_;
  Options options_;
  mutable std::mutex opening_;
  mutable std::optional<Ort::Session> encoder_, decoder_;
};

}  // namespace mmada_lite::internal
