// SPDX-License-Identifier: Apache-2.0
/// \file
/// Sets of tokens, one for each batch item or one for all: the global tokens of a Longformer.
#pragma once

#include <string>
#include <vector>

#include "longview/detail/contract_check.hpp"

namespace longview::inline v0 {

/// Item b owns indices[offsets[b]] ... indices[offsets[b + 1] - 1]: in any order, none twice. No offsets: one set for all.
struct TokenSets {
  std::span<const Index> indices{}, offsets{};
};

inline namespace LONGVIEW_BUILD {

/// The non-zero tokens of a (batch, length) mask, kept in `storage`: once per batch, for all layers.
/// \throws ContractError on a negative extent or null data
inline TokenSets token_sets(TensorView<const std::uint8_t, 2> mask, std::vector<Index>& storage) {
  const Run run;
  detail::Contract contract("token_sets", run);
  contract.input("mask", mask);
  if (!contract.accepted()) return {};
  const Index batch = mask.extent(0), length = mask.extent(1);
  storage.assign(static_cast<std::size_t>(batch) + 1, 0);
  for (Index item = 0; item < batch; ++item) {
    for (Index token = 0; token < length; ++token)
      if (mask(item, token) != 0) storage.push_back(token);
    storage[static_cast<std::size_t>(item) + 1] = static_cast<Index>(storage.size()) - batch - 1;
  }
  const std::span<const Index> all(storage);
  return {all.subspan(static_cast<std::size_t>(batch) + 1), all.first(static_cast<std::size_t>(batch) + 1)};
}

namespace detail {

inline std::span<const Index> set_of(const TokenSets& tokens, Index item) {
  if (tokens.offsets.empty()) return tokens.indices;
  const auto begin = static_cast<std::size_t>(tokens.offsets[static_cast<std::size_t>(item)]);
  const auto end = static_cast<std::size_t>(tokens.offsets[static_cast<std::size_t>(item) + 1]);
  return tokens.indices.subspan(begin, end - begin);
}
inline Index largest_set(const TokenSets& tokens, Index batch) {
  Index most = 0;
  for (Index item = 0; item < batch; ++item)
    if (const auto count = static_cast<Index>(set_of(tokens, item).size()); count > most) most = count;
  return most;
}

/// Checks the global tokens of a Longformer.
inline void check_token_sets(Contract& contract, const TokenSets& tokens, Index batch, Index length) {
  const char* const name = "options.global.tokens";
  if (!contract.ok()) return;
  if (!tokens.offsets.empty()) {
    contract.size(std::string(name) + ".offsets", tokens.offsets, batch + 1, "batch + 1");
    if (!contract.ok()) return;
    contract.equal("options.global.tokens.offsets[0]", "", tokens.offsets[0], 0, "");
    for (std::size_t item = 0; item + 1 < tokens.offsets.size(); ++item)
      if (tokens.offsets[item + 1] < tokens.offsets[item])
        contract.fail(std::string(name) + ".offsets", "must not decrease (at " + std::to_string(item + 1) + ")");
    contract.equal("options.global.tokens.offsets", "last", tokens.offsets.back(), static_cast<Index>(tokens.indices.size()),
                   "indices");
  }
  for (const Index token : tokens.indices)
    if (token < 0 || token >= length)
      return contract.fail(name, "global index " + std::to_string(token) + " out of range [0, " +
                                     std::to_string(length) + ")");
  const Index sets = tokens.offsets.empty() ? (batch > 0 ? 1 : 0) : batch;
  for (Index item = 0; contract.ok() && item < sets; ++item) {
    const auto set = set_of(tokens, item);
    Index highest = -1;
    for (std::size_t at = 0; at < set.size(); ++at) {
      // Ascending sets, as token_sets makes them, need no search.
      for (std::size_t before = 0; set[at] <= highest && before < at; ++before)
        if (set[before] == set[at])
          return contract.fail(name, "global index " + std::to_string(set[at]) + " given twice");
      if (set[at] > highest) highest = set[at];
    }
  }
}

}  // namespace detail
}  // namespace LONGVIEW_BUILD
}  // namespace longview
