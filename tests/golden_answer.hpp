// SPDX-License-Identifier: Apache-2.0
// What the library writes for a golden case, by name of the output.
#pragma once

#include <longview/scores.hpp>
#include <map>
#include <string>
#include <vector>

#include "golden_case.hpp"
#include "golden_layout.hpp"

namespace golden {

template <typename T>
using Answer = std::map<std::string, Tensor<T>>;

/// `out`, and `lse`: part of the answer where the file has it, and what the backward pass goes on from.
template <typename T>
class AttentionAnswer {
 public:
  AttentionAnswer(const Case& of, const Tensor<double>& query, const Tensor<double>& value, Layout layout)
      : with_lse_(of.has("lse")),
        needs_lse_(with_lse_ || of.has("d_out")),
        out_({query.extent(0), query.extent(1), query.extent(2), value.extent(3)}, layout),
        lse_({query.extent(0), query.extent(1), query.extent(2)}, layout) {}

  longview::Output<T> output() {
    if (!needs_lse_) return out_.view();
    return {out_.view(), lse_.view()};
  }
  Answer<T> answer() {
    Answer<T> all{{"out", out_.copy()}};
    if (with_lse_) all.emplace("lse", lse_.copy());
    return all;
  }

 private:
  bool with_lse_, needs_lse_;
  Written<T, 4> out_;
  Written<T, 3> lse_;
};

/// Room for the gradients that a file holds, and those that arrive with it. What the file does not name is absent.
template <typename T>
class GradientAnswer {
 public:
  GradientAnswer(const Case& of, Layout layout) : of_(of), layout_(layout) {}

  bool wanted() const { return of_.has("d_out"); }
  longview::TensorView<const T, 4> out(Inputs<T>& inputs) const {
    return inputs.template tensor<4>(of_.tensor<double>("d_out"));
  }
  longview::TensorView<const T, 3> lse(Inputs<T>& inputs) const {
    return inputs.template tensor<3>(of_.optional<double>("d_lse"));
  }
  /// A file may leave out a leading axis of extent 1.
  template <std::size_t Rank>
  longview::TensorView<T, Rank> tensor(const std::string& name) {
    if (!of_.has(name)) return {};
    std::vector<Index> shape = of_.shape(name);
    if (shape.size() + 1 == Rank) shape.insert(shape.begin(), 1);
    auto& held = rooms<Rank>().try_emplace(name, shape_of<Rank>(shape), layout_).first->second;
    return held.view();
  }
  std::span<T> list(const std::string& name) {
    if (!of_.has(name)) return {};
    std::vector<T>& held = lists_[name];
    held.assign(reference::to_size(of_.shape(name).at(0)), std::numeric_limits<T>::quiet_NaN());
    return held;
  }
  longview::ScoreGradients<T> scores() {
    return {.bias = tensor<4>("d_bias"), .alibi_slopes = list("d_alibi_slopes"), .sinks = list("d_sinks")};
  }

  void add_to(Answer<T>& answer) {
    for (auto& [name, held] : rank_2_) add_copy(answer, name, held.copy());
    for (auto& [name, held] : rank_3_) add_copy(answer, name, held.copy());
    for (auto& [name, held] : rank_4_) add_copy(answer, name, held.copy());
    for (const auto& [name, held] : lists_)
      answer[name] = Tensor<T>({static_cast<Index>(held.size())}), answer[name].elements() = held;
  }

 private:
  template <std::size_t Rank>
  auto& rooms() {
    if constexpr (Rank == 2)
      return rank_2_;
    else if constexpr (Rank == 3)
      return rank_3_;
    else
      return rank_4_;
  }
  void add_copy(Answer<T>& answer, const std::string& name, const Tensor<T>& copy) const {
    Tensor<T>& added = answer[name] = Tensor<T>(of_.shape(name));
    added.elements() = copy.elements();
  }

  const Case& of_;
  Layout layout_;
  std::map<std::string, Written<T, 2>> rank_2_;
  std::map<std::string, Written<T, 3>> rank_3_;
  std::map<std::string, Written<T, 4>> rank_4_;
  std::map<std::string, std::vector<T>> lists_;
};

}  // namespace golden
