// Text files as one document of bytes, by default the headers that a machine with a compiler has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

struct Document {
  std::vector<std::uint8_t> bytes;
  std::size_t files = 0;  ///< that it comes from
};

/// Concatenates the files until there are `most` bytes.
inline Document read_document(const std::vector<std::filesystem::path>& paths, std::size_t most) {
  Document document;
  for (const std::filesystem::path& path : paths) {
    if (document.bytes.size() >= most) break;
    std::ifstream stream(path, std::ios::binary);
    if (!stream || stream.peek() == std::ifstream::traits_type::eof())
      throw std::runtime_error(path.string() + (stream.eof() ? ": is empty" : ": cannot be read"));
    for (std::istreambuf_iterator<char> at(stream), end; at != end && document.bytes.size() < most; ++at)
      document.bytes.push_back(static_cast<std::uint8_t>(*at));
    ++document.files;
  }
  return document;
}

/// All files below the first of the directories that there is, in order.
inline std::vector<std::filesystem::path> files_below_one_of(const std::vector<std::filesystem::path>& directories) {
  std::vector<std::filesystem::path> paths;
  for (const std::filesystem::path& directory : directories) {
    std::error_code problem;
    if (!std::filesystem::is_directory(directory, problem)) continue;
    using Options = std::filesystem::directory_options;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory, Options::skip_permission_denied))
      if (entry.is_regular_file(problem) && entry.file_size(problem) > 0) paths.push_back(entry.path());
    if (!paths.empty()) break;
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// Headers of the C++ standard library and of Eigen in turn.
inline std::vector<std::filesystem::path> headers_of_this_machine() {
  const auto standard = files_below_one_of({"/usr/include/c++", "/usr/local/include/c++", "/usr/include/c++/v1",
                                            "/Library/Developer/CommandLineTools/SDKs/MacOSX.sdk/usr/include/c++/v1"});
  const auto eigen = files_below_one_of({"/usr/include/eigen3/Eigen/src", "/usr/local/include/eigen3/Eigen/src",
                                         "/opt/homebrew/include/eigen3/Eigen/src"});
  std::vector<std::filesystem::path> paths;
  for (std::size_t at = 0; at < std::max(standard.size(), eigen.size()); ++at) {
    if (at < standard.size()) paths.push_back(standard[at]);
    if (at < eigen.size()) paths.push_back(eigen[at]);
  }
  if (paths.empty()) throw std::runtime_error("no C++ headers where they usually are: name some FILEs");
  return paths;
}
