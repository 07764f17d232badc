// The files of a bundle: read whole, hashed, and compared with what the manifest says of them.
#include "files.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "common.hpp"

namespace mmada_lite::internal {
namespace {

constexpr std::int64_t kHashedUpTo = std::int64_t{256} << 20;  // bytes; larger bundles are hashed only when asked

// SHA-256 (FIPS 180-4).
class Sha256 {
 public:
  Sha256() {
    // The constants are the first 32 bits of the fractional parts of roots of the first primes.
    int count = 0;
    for (int candidate = 2; count < 64; ++candidate) {
      bool prime = true;
      for (int divisor = 2; divisor * divisor <= candidate; ++divisor) prime = prime && candidate % divisor != 0;
      if (!prime) continue;
      if (count < 8) state_[static_cast<std::size_t>(count)] = fraction(std::sqrt(static_cast<long double>(candidate)));
      constants_[static_cast<std::size_t>(count++)] = fraction(std::cbrt(static_cast<long double>(candidate)));
    }
  }

  void add(const unsigned char* data, std::size_t size) {
    total_ += size;
    while (size) {
      const std::size_t part = std::min(size, 64 - filled_);
      std::memcpy(block_.data() + filled_, data, part);
      filled_ += part;
      data += part;
      size -= part;
      if (filled_ == 64) digest_block();
    }
  }

  std::string finish() {
    const std::uint64_t bits = total_ * 8;
    const unsigned char one = 0x80, zero = 0;
    add(&one, 1);
    while (filled_ != 56) add(&zero, 1);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    add(length, 8);
    std::string text;
    char digits[9];
    for (const auto word : state_) {
      std::snprintf(digits, sizeof digits, "%08x", static_cast<unsigned>(word));
      text += digits;
    }
    return text;
  }

 private:
  static std::uint32_t fraction(long double root) {
    return static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0L);
  }
  static std::uint32_t rotated_right(std::uint32_t x, int by) { return x >> by | x << (32 - by); }

  void digest_block() {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) {
      w[i] = static_cast<std::uint32_t>(block_[4 * i]) << 24 | static_cast<std::uint32_t>(block_[4 * i + 1]) << 16 |
             static_cast<std::uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
    }
    for (std::size_t i = 16; i < 64; ++i) {
      const auto low = rotated_right(w[i - 15], 7) ^ rotated_right(w[i - 15], 18) ^ w[i - 15] >> 3;
      const auto high = rotated_right(w[i - 2], 17) ^ rotated_right(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const auto first =
          h + (rotated_right(e, 6) ^ rotated_right(e, 11) ^ rotated_right(e, 25)) + ((e & f) ^ (~e & g)) + constants_[i] + w[i];
      const auto second = (rotated_right(a, 2) ^ rotated_right(a, 13) ^ rotated_right(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::array<std::uint32_t, 8> after{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += after[i];
    filled_ = 0;
  }

  std::array<std::uint32_t, 8> state_{};
  std::array<std::uint32_t, 64> constants_{};
  std::array<unsigned char, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t total_ = 0;
};

std::string sha256_of(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::vector<char> buffer(1 << 20);
  Sha256 hash;
  while (stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || stream.gcount()) {
    hash.add(reinterpret_cast<const unsigned char*>(buffer.data()), static_cast<std::size_t>(stream.gcount()));
  }
  return hash.finish();
}

}  // namespace

std::string read_file(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) fail(path.string(), ": cannot be read; check who owns it");
  std::ostringstream content;
  content << stream.rdbuf();
  return content.str();
}

void check_files(const fs::path& folder, std::vector<FileInfo>& files, bool all) {
  std::int64_t total = 0;
  std::error_code fault;
  for (auto& file : files) {
    const fs::path path = folder / file.name;
    if (!fs::is_regular_file(path, fault)) fail(path.string(), ": this file of the bundle is missing; ", kFetchAgain);
    const auto size = static_cast<std::int64_t>(fs::file_size(path, fault));
    if (size != file.size) {
      fail(path.string(), " is ", size < file.size ? "truncated" : "altered", ": ", size, " bytes, and ", kManifest, " says ",
           file.size, "; ", kFetchAgain);
    }
    total += size;
  }
  for (auto& file : files) {
    const fs::path path = folder / file.name;
    if ((all || total <= kHashedUpTo) && sha256_of(path) != file.sha256) {
      fail(path.string(), " was edited or damaged: its sha256 is not the one in ", kManifest, "; ", kFetchAgain);
    }
    file.changed = fs::last_write_time(path, fault);
  }
}

void check_unchanged(const fs::path& folder, const std::vector<FileInfo>& files) {
  for (const auto& file : files) {
    std::error_code fault;
    const fs::path path = folder / file.name;
    const auto size = fs::file_size(path, fault);
    if (!fault && static_cast<std::int64_t>(size) == file.size && fs::last_write_time(path, fault) == file.changed && !fault)
      continue;
    fail(path.string(), " was changed on disk while the model was in use; load the bundle again");
  }
}

}  // namespace mmada_lite::internal
