// The files of a bundle on the disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace mmada_lite::internal {

namespace fs = std::filesystem;

constexpr const char* kManifest = "bundle.json";
constexpr const char* kFetchAgain = "fetch the bundle again, or write it with `mmada-lite export CHECKPOINT -o FOLDER`";

struct FileInfo {
  std::string name;
  std::int64_t size;  // bytes
  std::string sha256;
  fs::file_time_type changed;  // when it was checked
};

std::string read_file(const fs::path& path);

// Sizes and, up to 256 MiB of all files or where `all` is asked, sha256. Notes when each file was changed.
void check_files(const fs::path& folder, std::vector<FileInfo>& files, bool all);

// Graphs are opened as they are needed; what lies on the disk by then must be what was checked.
void check_unchanged(const fs::path& folder, const std::vector<FileInfo>& files);

}  // namespace mmada_lite::internal
