// The text that a model learns from, and the text that it is tested on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "byte_transformer.hpp"
#include "document.hpp"

struct TrainingText {
  std::vector<std::uint8_t> training, held_out;
  std::size_t files = 0, files_held_out = 0;
};

/// Every tenth file in alphabetical order is held out; of fewer than ten, the last tenth of each. Of each file, at most
/// the first `most_of_a_file` bytes.
inline TrainingText read_training_text(std::vector<std::filesystem::path> paths,
                                       std::size_t most_of_a_file = std::size_t{1} << 40) {
  std::sort(paths.begin(), paths.end());
  TrainingText text;
  const auto append = [](std::vector<std::uint8_t>& to, std::span<const std::uint8_t> bytes) {
    to.insert(to.end(), bytes.begin(), bytes.end());
  };
  for (std::size_t at = 0; at < paths.size(); ++at) {
    const Document document = read_document({paths[at]}, most_of_a_file);
    const std::span<const std::uint8_t> bytes(document.bytes);
    if (paths.size() < 10) {
      append(text.training, bytes.first(bytes.size() - bytes.size() / 10));
      append(text.held_out, bytes.last(bytes.size() / 10));
      ++text.files, ++text.files_held_out;
    } else if (at % 10 == 9) {
      append(text.held_out, bytes), ++text.files_held_out;
    } else {
      append(text.training, bytes), ++text.files;
    }
  }
  return text;
}

/// C++ headers, of which none is to outweigh the others: Eigen comes with a megabyte of declarations of LAPACK.
inline TrainingText read_headers_of_this_machine() { return read_training_text(headers_of_this_machine(), 1 << 16); }

/// Fowler, Noll and Vo's hash.
inline std::uint64_t hash_of(std::span<const std::uint8_t> text) {
  std::uint64_t hash = 0xCBF29CE484222325U;
  for (const std::uint8_t byte : text) hash = (hash ^ byte) * 0x100000001B3U;
  return hash;
}

/// Number `index` of a sequence that the seed chooses (Steele et al., "Fast splittable pseudorandom number
/// generators").
inline std::uint64_t random_number(std::uint64_t seed, std::uint64_t index) {
  std::uint64_t bits = seed * 0xD1342543DE82EF95U + (index + 1) * 0x9E3779B97F4A7C15U;
  bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9U;
  bits = (bits ^ bits >> 27) * 0x94D049BB133111EBU;
  return bits ^ bits >> 31;
}

/// `count` passages of `length` bytes and their next, anywhere in the text; which ones depends on seed and round alone.
inline Passages random_passages(std::span<const std::uint8_t> text, longview::Index count, longview::Index length,
                                std::uint64_t seed, longview::Index round) {
  const auto places = static_cast<std::uint64_t>(static_cast<longview::Index>(text.size()) - length);
  Passages passages{text, {}};
  for (longview::Index at = 0; at < count; ++at)
    passages.first.push_back(
        static_cast<longview::Index>(random_number(seed, static_cast<std::uint64_t>(round * count + at)) % places));
  return passages;
}
