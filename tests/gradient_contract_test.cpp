// SPDX-License-Identifier: Apache-2.0
// Every error text of backward calls that the forward ones do not have, and that nothing is written where one is
// raised.
#include "test_gradients.hpp"

namespace {

using longview::AttentionGradients;
using longview::ContractError;
using longview::DryRun;
using longview::Sequential;
using test::Index;
using test::Output;
using test::Scores;
using test::Shape;
using test::Sizes;
using test::TensorView;

constexpr Sizes sizes{2, 6, 3, 8, 8, 4, 5};

/// The text of an error without `name`, the same of a rehearsal; nothing may be written. Run: the last argument of
/// `call`.
template <typename Call>
std::string error_text(const std::vector<float>& memory, const std::string& name, Call call) {
  const std::vector<float> before = memory;
  const std::string text = test::error_of<ContractError>([&] { call(longview::Run()); });
  EXPECT_TRUE(std::memcmp(before.data(), memory.data(), before.size() * sizeof(float)) == 0) << "written: " << text;
  const Sequential sequential;
  DryRun dry;
  EXPECT_NO_THROW(call(longview::Run(sequential, dry)));
  EXPECT_EQ(dry.error(), text);
  EXPECT_FALSE(dry.ok());
  if (text.compare(0, name.size(), name) != 0) return "without the operator's name: " + text;
  return text.substr(name.size());
}

template <typename Operator>
class BackwardContract : public ::testing::Test {
 public:
  using Tensor = TensorView<float, 4>;

  std::vector<float> memory_ = std::vector<float>(16384, 1.5F);
  Tensor query = at(0, sizes.query()), key = at(1000, sizes.key()), value = at(2000, sizes.value()),
         out = at(3000, sizes.out());
  TensorView<float, 3> lse{memory_.data() + 4000, sizes.lse()};
  AttentionGradients<float> gradients{.out = at(5000, sizes.out()),
                                      .lse = {memory_.data() + 6000, sizes.lse()},
                                      .query = at(7000, sizes.query()),
                                      .key = at(8000, sizes.key()),
                                      .value = at(9000, sizes.value())};
  Scores<float> scores{};
  std::vector<float> numbers_ = std::vector<float>(6, 0.5F), gradients_of_numbers_ = std::vector<float>(7, 1.5F);

  Tensor at(std::size_t first, const Shape<4>& shape) { return {memory_.data() + first, shape}; }
  void call(longview::Run run = {}) {
    test::run_backward(Operator(), query, key, value, {out, lse}, gradients, scores, run);
  }
  std::string error() {
    return error_text(memory_, std::string(Operator::name) + "_backward: ", [&](longview::Run run) { call(run); });
  }
};

struct Name {
  template <typename Operator>
  static std::string GetName(int) {
    return Operator::name;
  }
};
using Operators = ::testing::Types<test::FullAttention<float>, test::SlidingWindowAttention<float>,
                                   test::LongformerAttention<float>, test::RelativeAttention<float>>;
TYPED_TEST_SUITE(BackwardContract, Operators, Name);

TYPED_TEST(BackwardContract, AcceptsWhatIsRight) {
  EXPECT_NO_THROW(this->call());
  this->gradients.lse = {};
  EXPECT_NO_THROW(this->call());
  this->gradients.query = {}, this->gradients.key = {}, this->gradients.value = {};
  EXPECT_NO_THROW(this->call());
}

TYPED_TEST(BackwardContract, G07_WhatTheForwardPassGave) {
  const auto right_lse = this->lse;
  this->lse = {right_lse.data_handle(), {2, 6, 7}};
  EXPECT_EQ(this->error(), "lse: shape (got 2x6x7, expected 2x6x8)");
  this->lse = {};
  EXPECT_EQ(this->error(), "lse: is required");
  this->lse = right_lse;
  this->out = this->at(3000, {2, 6, 8, 4});
  EXPECT_EQ(this->error(), "out: shape (got 2x6x8x4, expected 2x6x8x5)");
  this->out = {nullptr, sizes.out()};
  const std::vector<float> before = this->memory_;
  EXPECT_EQ(test::error_of<ContractError>([&] { this->call(); }),
            std::string(TypeParam::name) + "_backward: out: null data for 480 elements");
  EXPECT_EQ(before, this->memory_);
}

/// Wrong values are the caller's risk: finite or not, but nothing beside the gradients is touched.
TYPED_TEST(BackwardContract, G07_WrongValuesOfTheForwardPass) {
  for (const float wrong : {-1000.0F, 0.0F, 1000.0F, std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (std::size_t at = 4000; at < 4096; ++at) this->memory_[at] = wrong;
    test::under_all_sets([&] {
      const std::vector<float> before = this->memory_;
      EXPECT_NO_THROW(this->call());
      for (std::size_t at = 0; at < 7000; ++at)
        ASSERT_EQ(test::bits_of(before[at]), test::bits_of(this->memory_[at])) << "element " << at;
    });
  }
}

TYPED_TEST(BackwardContract, WhatArrives) {
  const auto right = this->gradients;
  this->gradients.out = {};
  EXPECT_EQ(this->error(), "gradients.out: is required");
  this->gradients.out = this->at(5000, {2, 6, 7, 5});
  EXPECT_EQ(this->error(), "gradients.out: shape (got 2x6x7x5, expected 2x6x8x5)");
  this->gradients = right;
  this->gradients.lse = {this->memory_.data() + 6000, {2, 3, 8}};
  EXPECT_EQ(this->error(), "gradients.lse: shape (got 2x3x8, expected 2x6x8)");
}

TYPED_TEST(BackwardContract, GradientsOfAnotherShape) {
  const auto right = this->gradients;
  this->gradients.query = this->at(7000, {2, 6, 8, 3});
  EXPECT_EQ(this->error(), "gradients.query: shape (got 2x6x8x3, expected 2x6x8x4)");
  this->gradients = right;
  this->gradients.key = this->at(8000, {2, 6, 8, 4});
  EXPECT_EQ(this->error(), "gradients.key: shape (got 2x6x8x4, expected 2x3x8x4)");
  this->gradients = right;
  this->gradients.value = this->at(9000, {2, 3, 8, 4});
  EXPECT_EQ(this->error(), "gradients.value: shape (got 2x3x8x4, expected 2x3x8x5)");
}

TYPED_TEST(BackwardContract, L10_GradientsThatOverlapThemselves) {
  const auto right = this->gradients;
  this->gradients.key = {this->memory_.data() + 8000, sizes.key(), {96, 0, 4, 1}};
  EXPECT_EQ(this->error(), "gradients.key: elements overlap (stride 0 on dim 1)");
  this->gradients = right;
  this->gradients.query = {this->memory_.data() + 7000, sizes.query(), {192, 32, 3, 1}};
  EXPECT_EQ(this->error(), "gradients.query: elements overlap");
}

TYPED_TEST(BackwardContract, L11_GradientsThatOverlapEachOther) {
  const auto right = this->gradients;
  this->gradients.key = this->at(7000, sizes.key());
  EXPECT_EQ(this->error(), "gradients.key: overlaps gradients.query");
  this->gradients = right;
  this->gradients.value = this->at(8100, sizes.value());
  EXPECT_EQ(this->error(), "gradients.value: overlaps gradients.key");
  this->gradients = right;
  this->scores.sinks = this->numbers_;
  this->gradients.scores.sinks = std::span(this->memory_).subspan(9100, 6);
  EXPECT_EQ(this->error(), "gradients.scores.sinks: overlaps gradients.value");
}

TYPED_TEST(BackwardContract, L08_GradientsThatOverlapWhatArrives) {
  const auto right = this->gradients;
  this->gradients.query = this->query;
  EXPECT_EQ(this->error(), "gradients.query: overlaps query");
  this->gradients = right;
  this->gradients.key = this->key;
  EXPECT_EQ(this->error(), "gradients.key: overlaps key");
  this->gradients = right;
  this->gradients.value = this->at(2100, sizes.value());
  EXPECT_EQ(this->error(), "gradients.value: overlaps value");
  this->gradients = right;
  this->gradients.query = this->at(3000, sizes.query());
  EXPECT_EQ(this->error(), "gradients.query: overlaps out");
  this->gradients.query = this->at(4000, sizes.query());
  EXPECT_EQ(this->error(), "gradients.query: overlaps lse");
  this->gradients.query = this->at(5000, sizes.query());
  EXPECT_EQ(this->error(), "gradients.query: overlaps gradients.out");
  this->gradients.query = this->at(6000, sizes.query());
  EXPECT_EQ(this->error(), "gradients.query: overlaps gradients.lse");
}

/// What arrives may be one tensor: gradients of a sum, for one.
TYPED_TEST(BackwardContract, InputsMayAlias) {
  this->gradients.out = this->out;
  EXPECT_NO_THROW(this->call());
}

TYPED_TEST(BackwardContract, GradientsOfScores) {
  this->gradients.scores.bias = this->at(10000, {1, 1, 8, 8});
  EXPECT_EQ(this->error(), "gradients.scores.bias: is the gradient of something absent");
  this->scores.bias = this->at(11000, {1, 1, 8, 8});
  EXPECT_NO_THROW(this->call());
  this->gradients.scores.bias = this->at(10000, {1, 1, 8, 7});
  EXPECT_EQ(this->error(), "gradients.scores.bias: shape (got 1x1x8x7, expected 2x6x8x8)");
  this->gradients.scores.bias = {};
  this->gradients.scores.sinks = std::span(this->gradients_of_numbers_).first(6);
  EXPECT_EQ(this->error(), "gradients.scores.sinks: is the gradient of something absent");
  this->scores.sinks = this->numbers_;
  EXPECT_NO_THROW(this->call());
  this->gradients.scores.sinks = this->gradients_of_numbers_;
  EXPECT_EQ(this->error(), "gradients.scores.sinks: size (got 7, expected 6 from query)");
  this->gradients.scores.sinks = {}, this->scores.sinks = {};
  this->gradients.scores.alibi_slopes = std::span(this->gradients_of_numbers_).first(6);
  EXPECT_EQ(this->error(), "gradients.scores.alibi_slopes: is the gradient of something absent");
  if (!TypeParam::takes_slopes) return;
  this->scores.alibi_slopes = this->numbers_;
  EXPECT_NO_THROW(this->call());
  this->gradients.scores.alibi_slopes = this->gradients_of_numbers_;
  EXPECT_EQ(this->error(), "gradients.scores.alibi_slopes: size (got 7, expected 6 from query)");
}

TYPED_TEST(BackwardContract, G05_ProbabilitiesOfDropout) {
  for (const double wrong :
       {-0.1, 1.5, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    this->scores.dropout.probability = wrong;
    EXPECT_EQ(this->error(), std::string(TypeParam::scores) + "dropout.probability: must be in [0, 1] (got " +
                                 std::to_string(wrong) + ")");
  }
}

TYPED_TEST(BackwardContract, S13_RehearsalsNeedNoData) {
  const auto null = [](const Shape<4>& shape) { return TensorView<float, 4>(nullptr, shape); };
  const Sequential sequential;
  DryRun dry, early;
  this->call(longview::Run(sequential, dry));
  test::run_backward(TypeParam(), null(sizes.query()), null(sizes.key()), null(sizes.value()),
                     {null(sizes.out()), TensorView<float, 3>(nullptr, sizes.lse())},
                     {.out = null(sizes.out()),
                      .lse = TensorView<float, 3>(nullptr, sizes.lse()),
                      .query = null(sizes.query()),
                      .key = null(sizes.key()),
                      .value = null(sizes.value())},
                     {}, longview::Run(sequential, early));
  EXPECT_TRUE(early.ok()) << early.error();
  EXPECT_EQ(early.workspace_bytes(), dry.workspace_bytes());
}

// ---- What only some operators have

class OwnContract : public ::testing::Test {
 public:
  std::vector<float> memory = std::vector<float>(16384, 1.5F);
  TensorView<float, 4> at(std::size_t first, const Shape<4>& shape) { return {memory.data() + first, shape}; }
  TensorView<float, 4> query = at(0, sizes.query()), key = at(1000, sizes.key()), value = at(2000, sizes.value()),
                       out = at(3000, sizes.out()), d_out = at(5000, sizes.out());
  TensorView<float, 3> lse{memory.data() + 4000, sizes.lse()};
};

TEST_F(OwnContract, SegmentsOfFullAttention) {
  const longview::KeyValueView<float> keys{{key, value}, {at(11000, sizes.key()), at(12000, sizes.value())}};
  AttentionGradients<float> gradients{.out = d_out, .query = at(7000, sizes.query())};
  const auto error = [&] {
    return error_text(memory, "full_attention_backward: ", [&](longview::Run run) {
      longview::full_attention_backward(query, keys, Output<const float>(out, lse), gradients, {}, run);
    });
  };
  EXPECT_NO_THROW(longview::full_attention_backward(query, keys, Output<const float>(out, lse), gradients));
  gradients.key = at(8000, sizes.key());
  EXPECT_EQ(error(), "gradients.key: has no meaning for a KeyValueView: gradients.segments has");
  gradients.key = {}, gradients.value = at(9000, sizes.value());
  EXPECT_EQ(error(), "gradients.value: has no meaning for a KeyValueView: gradients.segments has");
  gradients.value = {};
  gradients.segments = {{at(8000, sizes.key()), {}}};
  EXPECT_EQ(error(), "gradients.segments: number (got 1, expected 2 from keys)");
  gradients.segments = {{}, {at(8000, sizes.value()), {}}};
  EXPECT_EQ(error(), "gradients.segments[1].key: shape (got 2x3x8x5, expected 2x3x8x4)");
  gradients.segments = {{at(8000, sizes.key()), {}}, {{}, at(8000, sizes.value())}};
  EXPECT_EQ(error(), "gradients.segments[1].value: overlaps gradients.segments[0].key");
  gradients.segments = {{at(8000, sizes.key()), {}}, {}};
  EXPECT_NO_THROW(longview::full_attention_backward(query, keys, Output<const float>(out, lse), gradients));
}

TEST_F(OwnContract, SegmentsWithoutAView) {
  const AttentionGradients<float> gradients{.out = d_out, .segments = {{at(8000, sizes.key()), {}}}};
  EXPECT_EQ(error_text(memory, "full_attention_backward: ",
                       [&](longview::Run run) {
                         longview::full_attention_backward(query, key, value, Output<const float>(out, lse), gradients,
                                                           {}, run);
                       }),
            "gradients.segments: has meaning for a KeyValueView only");
}

TEST_F(OwnContract, GlobalProjectionsOfLongformer) {
  const Index tokens[] = {2, 5};
  longview::LongformerOptions<float> options{.window = {2, 2}};
  options.global.tokens.indices = tokens;
  longview::LongformerGradients<float> gradients{.out = d_out};
  const auto error = [&] {
    return error_text(memory, "longformer_attention_backward: ", [&](longview::Run run) {
      longview::longformer_attention_backward(query, key, value, Output<const float>(out, lse), gradients, options,
                                              run);
    });
  };
  const auto with = [&](TensorView<float, 4> q, TensorView<float, 4> k, TensorView<float, 4> v) {
    gradients.query_global = q, gradients.key_global = k, gradients.value_global = v;
  };
  with(at(7000, sizes.query()), {}, {});
  EXPECT_EQ(error(), "gradients.query_global: is the gradient of something absent");
  with({}, at(8000, sizes.key()), {});
  EXPECT_EQ(error(), "gradients.key_global: is the gradient of something absent");
  with({}, {}, at(9000, sizes.value()));
  EXPECT_EQ(error(), "gradients.value_global: is the gradient of something absent");
  options.global.query = at(11000, sizes.query()), options.global.key = at(12000, sizes.key());
  options.global.value = at(13000, sizes.value());
  with(at(7000, sizes.key()), {}, {});
  EXPECT_EQ(error(), "gradients.query_global: shape (got 2x3x8x4, expected 2x6x8x4)");
  with(at(7000, sizes.query()), at(7100, sizes.key()), {});
  EXPECT_EQ(error(), "gradients.key_global: overlaps gradients.query_global");
  with(at(7000, sizes.query()), at(8000, sizes.key()), at(9000, sizes.value()));
  EXPECT_NO_THROW(
      longview::longformer_attention_backward(query, key, value, Output<const float>(out, lse), gradients, options));
}

TEST_F(OwnContract, PositionsOfRelativeAttention) {
  longview::RelativeOptions<float> options{.position = {memory.data() + 11000, {6, 8, 4}}};
  longview::RelativeGradients<float> gradients{.out = d_out};
  const auto error = [&] {
    return error_text(memory, "relative_attention_backward: ", [&](longview::Run run) {
      longview::relative_attention_backward(query, key, value, Output<const float>(out, lse), gradients, options, run);
    });
  };
  gradients.content_bias = {memory.data() + 12000, {6, 4}};
  EXPECT_EQ(error(), "gradients.content_bias: is the gradient of something absent");
  gradients.content_bias = {}, gradients.position_bias = {memory.data() + 12000, {6, 4}};
  EXPECT_EQ(error(), "gradients.position_bias: is the gradient of something absent");
  gradients.position_bias = {}, gradients.position = {memory.data() + 12000, {6, 7, 4}};
  EXPECT_EQ(error(), "gradients.position: shape (got 6x7x4, expected 6x8x4)");
  gradients.position = {memory.data() + 12000, {1, 8, 4}};
  EXPECT_NO_THROW(
      longview::relative_attention_backward(query, key, value, Output<const float>(out, lse), gradients, options));
}

}  // namespace
