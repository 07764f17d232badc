// onnxruntime: sessions over a bundle's graphs, and the functions that they are.
#include "session.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <numeric>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif

#include "common.hpp"
#include "unicode.hpp"

namespace mmada_lite::internal {
namespace {

struct Runtime {
  Ort::Env environment{ORT_LOGGING_LEVEL_FATAL, "mmada_lite"};
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
};

Runtime& runtime() {
  if (!OrtGetApiBase()->GetApi(ORT_API_VERSION)) {
    fail("this libonnxruntime (", OrtGetApiBase()->GetVersionString(),
         ") is older than the headers that the program was built with (interface ", ORT_API_VERSION, "); link a newer one");
  }
#ifndef _WIN32
  // onnxruntime reads it while its environment is made: telemetry is off, unless the user chose.
  static const int silent = setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  (void)silent;
#endif
  static Runtime* const kept = new Runtime;  // never taken down: sessions of static lifetime may outlive it otherwise
  return *kept;
}

// Cores' time that a control group of either version may take; 0 for no bound.
double share_of(const fs::path& group) {
  std::string quota, period;
  if (std::ifstream both(group / "cpu.max"); both >> quota >> period) {
    // version 2: "max 100000", or microseconds a period
  } else {
    std::ifstream(group / "cpu.cfs_quota_us") >> quota;
    std::ifstream(group / "cpu.cfs_period_us") >> period;
  }
  const double each = std::atof(period.c_str());
  return each > 0 ? std::max(0.0, std::atof(quota.c_str())) / each : 0;
}

// The threads by default: cores that this process may run on, and no more than its container has the time of, rounded up.
int usable_cores() {
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  std::ifstream own("/proc/self/cgroup");
  for (std::string line; std::getline(own, line);) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const fs::path root = fs::path("/sys/fs/cgroup") / controllers;
    for (fs::path path = line.substr(second + 1);; path = path.parent_path()) {
      const double share = share_of(root / path.relative_path());
      if (share > 0) cores = std::min(cores, std::max(1, static_cast<int>(std::ceil(share))));
      if (path == path.parent_path()) break;
    }
  }
#endif
  return cores;
}

// What an error says, short enough for a line, in letters that a terminal shows.
std::string first_line(const std::string& text) {
  std::string line = lossy_utf8(text.substr(0, text.find('\n')).substr(0, 240));
  for (auto& letter : line) {
    if (static_cast<unsigned char>(letter) < 0x20 || letter == 0x7F) letter = ' ';
  }
  return line;
}

// Whether onnxruntime's fast kernels add up products of int8 exactly on this processor: on x86 without VNNI they add pairs of
// them in 16 bits, which can overflow. Where the system does not say: yes.
bool exact_int8() {
#if defined(__x86_64__) || defined(_M_X64)
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    line += ' ';
    return line.find(" avx512_vnni ") != std::string::npos || line.find(" avx_vnni ") != std::string::npos;
  }
#endif
  return true;
}

Ort::Session open_session(const fs::path& path, const Options& options) {
  Ort::SessionOptions settings;
  settings.SetIntraOpNumThreads(options.threads > 0 ? options.threads : usable_cores());
  settings.SetInterOpNumThreads(1);
  // Waiting threads sleep: the host's other work needs the cores.
  settings.AddConfigEntry("session.intra_op.allow_spinning", "0");
  settings.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);  // errors are thrown, and said by us
  // Slower kernels whose sums do not overflow; only such a graph needs them, and others may not open with them. Codes within 63
  // need none.
  if (!exact_int8()) {
    const std::string graph = read_file(path);
    const bool narrow = graph.find("codes_within") != std::string::npos;
    if (!narrow && graph.find("MatMulInteger") != std::string::npos) {
      int major = 0, minor = 0;
      const char* version = OrtGetApiBase()->GetVersionString();
      if (graph.find(".middle") == std::string::npos && std::sscanf(version, "%d.%d", &major, &minor) == 2 &&
          std::pair(major, minor) < std::pair(1, 30)) {
        fail(path, " was exported by an earlier version, and onnxruntime ", version,
             " ends the program when it opens that on this processor; export the model again, or link onnxruntime 1.30");
      }
      settings.AddConfigEntry("session.x64quantprecision", "1");
    }
  }
  try {
    if (options.device == "cuda") settings.AppendExecutionProvider_CUDA(OrtCUDAProviderOptions{});
    return Ort::Session(runtime().environment, path.c_str(), settings);
  } catch (const Ort::Exception& error) {
    fail("onnxruntime cannot load ", path.string(), ": ", first_line(error.what()));
  }
}

// A fixed length by the key of bundle.json that says it; no key: any length but a fixed one, or `number`.
struct Axis {
  const char* key = "";
  std::int64_t length = -1;
};

struct Interface {
  ONNXTensorElementDataType kind;
  std::vector<Axis> axes;
};

using Interfaces = std::map<std::string, Interface>;

ONNXTensorElementDataType type_of_kept(const Bundle& bundle) {
  return bundle.half ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

// The inputs or the outputs that a graph must have (docs/bundle.md).
Interfaces declared(const Bundle& bundle, const std::string& graph, bool inputs) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, kInt = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  const Axis any, three{"", 3}, width{"architecture.d_model", bundle.width};
  const Interface codes{kInt, {any, any, any}}, pixels{kFloat, {any, three, any, any}}, row{kFloat, {any, any}};
  if (graph == "embedder") {
    return inputs ? Interfaces{{"tokens", {kInt, {any, any}}}} : Interfaces{{"embeddings", {kFloat, {any, any, width}}}};
  }
  if (graph == "image_encoder" || graph == "image_decoder") {
    return inputs == (graph == "image_encoder") ? Interfaces{{"pixels", pixels}} : Interfaces{{"codes", codes}};
  }
  if (graph == "backbone") {
    Interfaces values = inputs ? Interfaces{{"embeddings", {kFloat, {any, any, width}}},
                                            {"positions", {kInt, {any, any}}},
                                            {"rows", {kInt, {any, any}}}}
                               : Interfaces{{"hidden", {kFloat, {any, any, width}}}};
    const Interface kept{type_of_kept(bundle),
                         {any, {"architecture.n_kv_heads", bundle.kv_heads}, any, {"architecture.head_dim", bundle.head_dim}}};
    for (std::int64_t layer = 0; layer < bundle.layers; ++layer) {
      for (const char* kind : {"key_", "value_"}) values[(inputs ? "past_" : "") + (kind + std::to_string(layer))] = kept;
    }
    return values;
  }
  if (inputs) {
    return {{"hidden", {kFloat, {any, any, width}}}, {"mix", row}, {"temperature", {kFloat, {}}}, {"uniform", row}};
  }
  const Axis columns = graph == "text_head" ? Axis{"vocabulary.size", bundle.vocabulary_size}
                                            : Axis{"vocabulary.codebook_size", bundle.codebook_size};
  return {{"token", {kInt, {any, any}}}, {"log_probability", row}, {"entropy", row}, {"logits", {kFloat, {any, any, columns}}}};
}

void check_value(const Ort::TypeInfo& type, const Interface& wanted, const std::string& where) {
  if (type.GetONNXType() != ONNX_TYPE_TENSOR) fail(where, " is no tensor; ", kFetchAgain);
  const auto info = type.GetTensorTypeAndShapeInfo();
  const auto shape = info.GetShape();
  if (info.GetElementType() != wanted.kind || shape.size() != wanted.axes.size()) {
    fail(where, " has another type or number of axes; ", kFetchAgain);
  }
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const Axis& axis = wanted.axes[i];
    if (shape[i] == axis.length || (axis.length < 0 && shape[i] < 0)) continue;
    fail(where, " has the length ", shape[i], " on axis ", i, ", and ", *axis.key ? axis.key : "what is needed", " is ",
         axis.length, "; ", kFetchAgain);
  }
}

// Opens a graph of a bundle. Throws Error where it is not what bundle.json says of it.
Ort::Session open_graph(const Bundle& bundle, const std::string& graph, const Options& options) {
  const std::string* file = bundle.graph(graph);
  Ort::Session session = open_session(bundle.path / *file, options);
  const std::string where = join((bundle.path / kManifest).string(), ": graphs.", graph, " is ", *file, ", whose ");
  Ort::AllocatorWithDefaultOptions allocator;
  for (const bool inputs : {true, false}) {
    Interfaces wanted = declared(bundle, graph, inputs);
    const std::string side = inputs ? "inputs" : "outputs";
    const std::size_t count = inputs ? session.GetInputCount() : session.GetOutputCount();
    if (graph == "backbone" && inputs && (count - 3) / 2 != static_cast<std::size_t>(bundle.layers)) {
      fail(where, "layers are ", (count - 3) / 2, ", and architecture.n_layers is ", bundle.layers, "; ", kFetchAgain);
    }
    std::set<std::string> found;
    for (std::size_t i = 0; i < count; ++i) {
      const auto name = inputs ? session.GetInputNameAllocated(i, allocator) : session.GetOutputNameAllocated(i, allocator);
      found.insert(name.get());
      const auto entry = wanted.find(name.get());
      if (entry == wanted.end()) {
        if (std::string(name.get()) == "magnitude") continue;
        fail(where, side, " have ", quoted(name.get()), ", which is not declared; ", kFetchAgain);
      }
      check_value(inputs ? session.GetInputTypeInfo(i) : session.GetOutputTypeInfo(i), entry->second, where + name.get());
      wanted.erase(entry);
    }
    if (!wanted.empty()) fail(where, side, " lack ", quoted(wanted.begin()->first), "; ", kFetchAgain);
    const auto said = bundle.interfaces.find(graph + "." + side);
    if (said == bundle.interfaces.end() || said->second != found) {
      fail(where, side, " are not those of graphs.", graph, ".", side, "; ", kFetchAgain);
    }
  }
  return session;
}

std::int64_t size_of(const std::vector<std::int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

// A tensor over memory that the caller keeps.
template <typename T>
Ort::Value tensor(const std::vector<T>& data, const std::vector<std::int64_t>& shape) {
  static T nothing{};  // an empty tensor needs an address all the same
  T* at = data.empty() ? &nothing : const_cast<T*>(data.data());
  return Ort::Value::CreateTensor<T>(runtime().memory, at, static_cast<std::size_t>(size_of(shape)), shape.data(),
                                     shape.size());
}

template <typename T>
const T* data_of(const Ort::Value& value) {
  const auto type = value.GetTensorTypeAndShapeInfo().GetElementType();
  if (type != Ort::TypeToTensorType<T>::type) fail("a graph of the bundle gives numbers of another type; ", kFetchAgain);
  return value.GetTensorData<T>();
}

constexpr const char* kVerify = "its weights are damaged; check the bundle with `mmada-lite info FOLDER --verify`";

template <typename T>
std::vector<T> copied(const Ort::Value& value) {
  const T* data = data_of<T>(value);
  return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
}

bool all_finite(const Floats& numbers) {
  return std::all_of(numbers.begin(), numbers.end(), [](float number) { return std::isfinite(number); });
}

std::vector<std::int64_t> shape_of(const Ort::Value& value, std::size_t axes) {
  auto shape = value.GetTensorTypeAndShapeInfo().GetShape();
  if (shape.size() != axes)
    fail("a graph of the bundle gives ", shape.size(), " axes where there are ", axes, "; ", kFetchAgain);
  return shape;
}

Values run(std::optional<Ort::Session>& session, const std::vector<const char*>& input_names, const Values& inputs,
           const std::vector<const char*>& output_names) {
  if (!session) fail("the bundle lacks a graph that this needs; ", kFetchAgain);
  try {
    return session->Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(), output_names.data(),
                        output_names.size());
  } catch (const Ort::Exception& error) {
    fail("onnxruntime cannot run a graph of the bundle: ", first_line(error.what()));
  }
}

}  // namespace

void check_runtime(const std::string& device) {
  runtime();
  if (device != "cpu" && device != "cuda") fail("no device is called ", quoted(device), "; use one of cpu, cuda");
  if (device == "cpu") return;
  const auto providers = Ort::GetAvailableProviders();
  if (std::find(providers.begin(), providers.end(), "CUDAExecutionProvider") == providers.end()) {
    fail("the linked onnxruntime has no CUDA provider; link the one that the package onnxruntime-gpu brings, or use cpu");
  }
}

Past past_without(const Values& keys_and_values, std::int64_t start, std::int64_t stop) {
  Past past;
  for (const auto& value : keys_and_values) {
    const auto shape = shape_of(value, 4);
    const auto half = value.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    const std::int64_t length = shape[2], width = shape[3] * (half ? 2 : 4);  // in bytes
    const auto* data = static_cast<const std::byte*>(value.GetTensorRawData());
    std::vector<std::byte> left;
    for (std::int64_t outer = 0; outer < shape[0] * shape[1]; ++outer, data += length * width) {
      left.insert(left.end(), data, data + start * width);
      if (stop < length) left.insert(left.end(), data + stop * width, data + length * width);
    }
    past.length = start + std::max<std::int64_t>(0, length - stop);
    past.tensors.push_back(std::move(left));
  }
  return past;
}

Denoiser::Denoiser(const Bundle& bundle, const Options& options)
    : layers_(bundle.layers), heads_(bundle.kv_heads), head_dim_(bundle.head_dim), kept_(type_of_kept(bundle)) {
  for (const auto& [slot, name] : {std::pair{&embedder_, "embedder"}, std::pair{&backbone_, "backbone"},
                                   std::pair{&text_head_, "text_head"}, std::pair{&image_head_, "image_head"}}) {
    slot->emplace(open_graph(bundle, name, options));
  }
  for (const char* kind : {"key_", "value_"}) {
    for (std::int64_t layer = 0; layer < layers_; ++layer) names_.push_back(kind + std::to_string(layer));
  }
  for (const auto& name : names_) past_names_.push_back("past_" + name);
}

Hidden Denoiser::forward(const Window& window, Values* kept) const {
  if (watch) watch(window);
  const std::int64_t width = window.stop - window.start, queried = static_cast<std::int64_t>(window.queried.size());
  Ids positions(static_cast<std::size_t>(width));
  std::iota(positions.begin(), positions.end(), window.start);
  Values tokens;
  tokens.push_back(tensor(window.tokens, {1, width}));
  Values inputs = run(embedder_, {"tokens"}, tokens, {"embeddings"});
  inputs.push_back(tensor(positions, {1, width}));
  inputs.push_back(tensor(window.queried, {1, queried}));
  std::vector<const char*> input_names{"embeddings", "positions", "rows"}, output_names{"hidden"};
  static std::byte nothing[4]{};  // an empty tensor needs an address all the same
  const std::array<std::int64_t, 4> past_shape{1, heads_, window.past ? window.past->length : 0, head_dim_};
  for (std::size_t i = 0; i < past_names_.size(); ++i) {
    input_names.push_back(past_names_[i].c_str());
    const auto* past = window.past ? &window.past->tensors[i] : nullptr;
    void* at = past && !past->empty() ? const_cast<std::byte*>(past->data()) : nothing;
    const std::size_t size = past ? past->size() : 0;
    inputs.push_back(Ort::Value::CreateTensor(runtime().memory, at, size, past_shape.data(), past_shape.size(), kept_));
    if (kept) output_names.push_back(names_[i].c_str());
  }
  Values outputs = run(backbone_, input_names, inputs, output_names);
  const auto shape = shape_of(outputs[0], 3);
  Hidden hidden{copied<float>(outputs[0]), shape[0], shape[1], shape[2]};
  if (kept) kept->assign(std::make_move_iterator(outputs.begin() + 1), std::make_move_iterator(outputs.end()));
  return hidden;
}

Prediction Denoiser::predict(Head head, const Hidden& hidden, const Floats& mix, double temperature,
                             const Floats* draws) const {
  const Values outputs = run_head(head, hidden, mix, temperature, draws, {"token", "log_probability", "entropy"});
  Prediction drawn{copied<std::int64_t>(outputs[0]), copied<float>(outputs[1])};
  drawn.finite = all_finite(drawn.log_probability) && all_finite(copied<float>(outputs[2]));
  return drawn;
}

Floats Denoiser::logits(Head head, const Hidden& hidden, const Floats& mix) const {
  return copied<float>(run_head(head, hidden, mix, 0.0, nullptr, {"logits"})[0]);
}

Values Denoiser::run_head(Head head, const Hidden& hidden, const Floats& mix, double temperature, const Floats* draws,
                          const std::vector<const char*>& output_names) const {
  const Floats temperature_input{static_cast<float>(temperature)};
  const Floats unused_draws(draws ? 0 : static_cast<std::size_t>(hidden.queried), 0.5f);
  Values inputs;
  inputs.push_back(tensor(hidden.states, {hidden.branches, hidden.queried, hidden.width}));
  inputs.push_back(tensor(mix, {1, hidden.branches}));
  inputs.push_back(tensor(temperature_input, {}));
  inputs.push_back(tensor(draws ? *draws : unused_draws, {1, hidden.queried}));
  return run(head == Head::text ? text_head_ : image_head_, {"hidden", "mix", "temperature", "uniform"}, inputs, output_names);
}

int Codec::grid() const {
  if (!bundle_.resolution || !bundle_.graph("image_decoder") || !bundle_.graph("image_encoder")) {
    fail(bundle_.path.string(), " has no image tokenizer and cannot see or draw; export it with its vq folder");
  }
  return static_cast<int>(bundle_.resolution / bundle_.downsample);
}

std::optional<Ort::Session>& Codec::opened(const char* name, std::optional<Ort::Session>& slot) const {
  grid();  // for its error
  const std::lock_guard<std::mutex> lock(opening_);
  if (!slot) {
    check_unchanged(bundle_.path, bundle_.files);
    slot.emplace(open_graph(bundle_, name, options_));
  }
  return slot;
}

Ids Codec::encode(const Floats& pixels) const {
  Values input;
  input.push_back(tensor(pixels, {1, 3, bundle_.resolution, bundle_.resolution}));
  std::vector<const char*> wanted{"codes"};
  const auto& given = bundle_.interfaces.at("image_encoder.outputs");
  if (given.count("magnitude")) wanted.push_back("magnitude");
  const Values outputs = run(opened("image_encoder", encoder_), {"pixels"}, input, wanted);
  const auto shape = shape_of(outputs[0], 3);
  if (shape[0] != 1 || shape[1] != grid() || shape[2] != grid()) {
    fail("the image encoder gives ", shape[1], " x ", shape[2], " codes where ", kManifest, " says ", grid(), "; ",
         kFetchAgain);
  }
  if (outputs.size() > 1 && !all_finite(copied<float>(outputs[1]))) {
    fail("the image encoder reads the picture as numbers that are not finite; ", kVerify);
  }
  Ids codes = copied<std::int64_t>(outputs[0]);
  for (const auto code : codes) {
    if (code < 0 || code >= bundle_.codebook_size) {
      fail("the image encoder gives the code ", code, " and the codebook has ", bundle_.codebook_size, "; ", kFetchAgain);
    }
  }
  return codes;
}

Floats Codec::decode(const Codes& codes) const {
  Values input;
  input.push_back(tensor(codes.ids, {1, codes.rows, codes.columns}));
  const Values outputs = run(opened("image_decoder", decoder_), {"codes"}, input, {"pixels"});
  const auto shape = shape_of(outputs[0], 4);
  const auto height = codes.rows * bundle_.downsample, width = codes.columns * bundle_.downsample;
  if (shape[0] != 1 || shape[1] != 3 || shape[2] != height || shape[3] != width) {
    fail("the image decoder gives ", shape[3], " x ", shape[2], " pixels where ", kManifest, " says ", width, " x ", height,
         "; ", kFetchAgain);
  }
  Floats pixels = copied<float>(outputs[0]);
  if (!all_finite(pixels)) fail("the image decoder draws pixels that are not finite; ", kVerify);
  return pixels;
}

}  // namespace mmada_lite::internal
