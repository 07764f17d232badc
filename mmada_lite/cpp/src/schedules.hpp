// How much of a row each step fills. No models and no canvases.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common.hpp"

namespace mmada_lite::internal {

// Tokens to write at each of `steps` steps so that `masks` are gone at the end: equal shares, the rest first.
Ids transfers(std::int64_t masks, std::int64_t steps);

using Schedule = std::function<float(float)>;  // share of the steps done to share still masked, in float32

Schedule schedule_of(const std::string& name);  // throws Error for a name that there is not

// floor(tokens * schedule(k / steps)) for k = 1..steps, in float32, before any clamp.
Ids masked_after(const std::string& schedule, std::int64_t tokens, std::int64_t steps);

// Scale of the confidence noise at each step: every step multiplies what is left by (1 - k / steps).
std::vector<double> noise_temperatures(double start, std::int64_t steps);

}  // namespace mmada_lite::internal
