// What bundle.json says of a model.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "files.hpp"
#include "json.hpp"
#include "rows.hpp"

namespace mmada_lite::internal {

struct Bundle {
  fs::path path;
  std::int64_t width = 0, layers = 0, kv_heads = 0, head_dim = 0, max_sequence_length = 0;
  Special special;
  std::int64_t code_offset = 0, codebook_size = 0, vocabulary_size = 0;
  Rows rows;
  std::int64_t resolution = 0, downsample = 0;  // 0: no pictures
  TextSettings text_defaults;
  ImageSettings image_defaults;
  std::vector<std::pair<std::string, std::string>> graphs;  // each graph's file
  std::map<std::string, std::set<std::string>> interfaces;   // "backbone.inputs": the names that bundle.json says
  bool half = false;                                         // whether keys and values are float16
  bool lower_case = false;                                   // whether the model was taught no capitals
  std::vector<FileInfo> files;

  const std::string* graph(const std::string& name) const;  // its file, or nothing
  bool has_file(const std::string& name) const;
};

// The bundle in a folder, its manifest checked key by key and its files by size and sha256 (check_files).
Bundle open_bundle(const fs::path& folder, bool verify_all);

}  // namespace mmada_lite::internal
