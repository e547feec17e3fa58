// Reads a golden file: a safetensors container (8 bytes of header length, a JSON header, the data) with tensors of
// float64, uint8 and int64 and with the metadata op, options, note, inputs, outputs. Anything unexpected throws.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace golden {

static_assert(std::endian::native == std::endian::little, "the files are little-endian");

using Extent = std::ptrdiff_t;

struct StoredTensor {
  std::vector<Extent> shape;
  std::variant<std::vector<double>, std::vector<std::uint8_t>, std::vector<std::int64_t>> elements;
};

struct File {
  std::string op, note;
  nlohmann::json options;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, StoredTensor> tensors;
};

class FormatError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const std::string& what) {
  if (!holds) throw FormatError(what);
}

namespace detail {

inline std::vector<std::string> names_in(const std::string& list) {
  std::vector<std::string> names;
  std::istringstream stream(list);
  for (std::string name; std::getline(stream, name, ',');) names.push_back(name);
  return names;
}

template <typename Element>
std::vector<Element> copy_of(const char* bytes, std::size_t count) {
  std::vector<Element> elements(count);
  if (count != 0) std::memcpy(elements.data(), bytes, count * sizeof(Element));
  return elements;
}

inline std::size_t bytes_of(const std::string& type) {
  require(type == "F64" || type == "U8" || type == "I64", "dtype " + type);
  return type == "U8" ? 1 : 8;
}

/// `used` is where the last tensor ended; tensors follow one another without gaps.
inline StoredTensor tensor_from(const nlohmann::json& entry, const std::string& data, std::size_t used) {
  const std::string type = entry.at("dtype").get<std::string>();
  StoredTensor tensor{entry.at("shape").get<std::vector<Extent>>(), {}};
  std::size_t count = 1;
  for (const Extent extent : tensor.shape) {
    require(extent >= 0, "negative extent");
    count *= static_cast<std::size_t>(extent);
  }
  const auto range = entry.at("data_offsets").get<std::vector<std::size_t>>();
  require(entry.size() == 3 && range.size() == 2, "tensor entry");
  require(range[0] == used && range[1] <= data.size() && range[1] - range[0] == count * bytes_of(type), "data range");
  const char* bytes = data.data() + range[0];
  if (type == "F64") tensor.elements = copy_of<double>(bytes, count);
  if (type == "U8") tensor.elements = copy_of<std::uint8_t>(bytes, count);
  if (type == "I64") tensor.elements = copy_of<std::int64_t>(bytes, count);
  return tensor;
}

/// The tensors' names in the order of their data.
inline std::vector<std::string> in_order(const nlohmann::json& header) {
  std::vector<std::pair<std::vector<std::size_t>, std::string>> ranges;
  for (const auto& [name, entry] : header.items())
    if (name != "__metadata__") ranges.emplace_back(entry.at("data_offsets").get<std::vector<std::size_t>>(), name);
  std::sort(ranges.begin(), ranges.end());
  std::vector<std::string> names;
  for (const auto& [range, name] : ranges) names.push_back(name);
  return names;
}

inline void read_metadata(File& file, const std::map<std::string, std::string>& metadata) {
  static const std::set<std::string> known{"op",
                                           "source",
                                           "options",
                                           "note",
                                           "inputs",
                                           "outputs",
                                           "cross_check",
                                           "cross_check_tensor",
                                           "cross_check_missing"};
  for (const auto& [name, text] : metadata) require(known.contains(name), "metadata " + name);
  for (const char* name : {"op", "options", "note", "inputs", "outputs"})
    require(metadata.contains(name), std::string("no metadata ") + name);
  file.op = metadata.at("op");
  file.note = metadata.at("note");
  file.options = nlohmann::json::parse(metadata.at("options"));
  require(file.options.is_object(), "options");
  file.inputs = names_in(metadata.at("inputs"));
  file.outputs = names_in(metadata.at("outputs"));
}

/// Every tensor is an input or an output, and no name is listed twice.
inline void check_names(const File& file) {
  std::set<std::string> listed;
  for (const auto* names : {&file.inputs, &file.outputs})
    for (const std::string& name : *names) {
      require(file.tensors.contains(name), "listed but absent: " + name);
      require(listed.insert(name).second, "listed twice: " + name);
    }
  require(listed.size() == file.tensors.size(), "a tensor is neither input nor output");
}

}  // namespace detail

inline File read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  require(stream.is_open(), "cannot open " + path.string());
  const std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::uint64_t header_bytes = 0;
  require(bytes.size() >= sizeof header_bytes, "no header");
  std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  require(header_bytes <= bytes.size() - sizeof header_bytes, "header length");
  const auto header = nlohmann::json::parse(bytes.substr(sizeof header_bytes, header_bytes));
  const std::string data = bytes.substr(sizeof header_bytes + header_bytes);

  File file;
  detail::read_metadata(file, header.at("__metadata__").get<std::map<std::string, std::string>>());
  std::size_t used = 0;
  for (const std::string& name : detail::in_order(header)) {
    file.tensors.emplace(name, detail::tensor_from(header.at(name), data, used));
    used = header.at(name).at("data_offsets").at(1).get<std::size_t>();
  }
  require(used == data.size(), "bytes after the last tensor");
  detail::check_names(file);
  return file;
}

/// The golden files directly in a directory, sorted.
inline std::vector<std::filesystem::path> files_in(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (entry.path().extension() == ".safetensors") paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace golden
