// SPDX-License-Identifier: Apache-2.0
// Every error text of the operators, and that nothing is written where one is raised.
#include <memory>

#include "test_operators.hpp"

namespace {

using longview::Alignment;
using longview::ContractError;
using longview::DryRun;
using longview::FailureHandler;
using longview::Sequential;
using longview::SizeError;
using test::Index;
using test::Output;
using test::Scores;
using test::Shape;
using test::Sizes;
using test::TensorView;

constexpr Index most = std::numeric_limits<Index>::max();

template <typename Operator>
class Contract : public ::testing::Test {
 public:
  static constexpr Sizes sizes{2, 6, 3, 8, 8, 4, 5};
  using Tensor = TensorView<float, 4>;

  std::vector<float> memory_ = std::vector<float>(8192, 1.5F);
  Tensor query{memory_.data(), sizes.query()}, key{memory_.data() + 1000, sizes.key()},
      value{memory_.data() + 2000, sizes.value()}, out{memory_.data() + 3000, sizes.out()};
  TensorView<float, 3> lse{memory_.data() + 4000, sizes.lse()};
  Scores<float> scores{};

  /// The text without the name of the operator. A rehearsal must tell the same, and nothing may be written.
  template <typename Error = ContractError>
  std::string error() {
    const std::vector<float> before = memory_;
    const std::string text = test::error_of<Error>([&] { Operator::run(query, key, value, {out, lse}, scores); });
    EXPECT_TRUE(std::memcmp(before.data(), memory_.data(), before.size() * sizeof(float)) == 0) << "written: " << text;
    const Sequential sequential;
    DryRun dry;
    EXPECT_NO_THROW(Operator::run(query, key, value, {out, lse}, scores, longview::Run(sequential, dry)));
    EXPECT_EQ(dry.error(), text);
    EXPECT_FALSE(dry.ok());
    const std::string name = std::string(Operator::name) + ": ";
    if (text.compare(0, name.size(), name) != 0) return "without the operator's name: " + text;
    return text.substr(name.size());
  }
  static std::string option(const char* name) { return std::string(Operator::scores) + name; }
};

TYPED_TEST_SUITE(Contract, test::ExactOperators<float>, test::TypeName);

TYPED_TEST(Contract, AcceptsWhatIsRight) {
  EXPECT_NO_THROW(TypeParam::run(this->query, this->key, this->value, {this->out, this->lse}, this->scores));
}

TYPED_TEST(Contract, S04_NoChannels) {
  this->query = {this->query.data_handle(), {2, 6, 8, 0}}, this->key = {this->key.data_handle(), {2, 3, 8, 0}};
  EXPECT_EQ(this->error(), "query: head_dim must be >= 1 (got 0)");
}

TYPED_TEST(Contract, S06_HeadsThatDoNotDivide) {
  this->key = {this->key.data_handle(), {2, 4, 8, 4}}, this->value = {this->value.data_handle(), {2, 4, 8, 5}};
  EXPECT_EQ(this->error(), "key: heads 4 do not divide query heads 6");
}

TYPED_TEST(Contract, S07_NoKeyHeads) {
  this->key = {this->key.data_handle(), {2, 0, 8, 4}}, this->value = {this->value.data_handle(), {2, 0, 8, 5}};
  EXPECT_EQ(this->error(), "key: heads must be >= 1 (got 0)");
}

TYPED_TEST(Contract, S08_ShapesThatDisagree) {
  const auto right_key = this->key;
  this->key = {right_key.data_handle(), {2, 3, 8, 3}};
  EXPECT_EQ(this->error(), "key: head_dim (got 3, expected 4 from query)");
  this->key = {right_key.data_handle(), {1, 3, 8, 4}};
  EXPECT_EQ(this->error(), "key: batch (got 1, expected 2 from query)");
  this->key = right_key;
  this->out = {this->out.data_handle(), {2, 6, 7, 5}};
  EXPECT_EQ(this->error(), "out: shape (got 2x6x7x5, expected 2x6x8x5)");
}

TYPED_TEST(Contract, S08_LseOfAnotherShape) {
  this->lse = {this->lse.data_handle(), {2, 6, 7}};
  EXPECT_EQ(this->error(), "lse: shape (got 2x6x7, expected 2x6x8)");
}

TYPED_TEST(Contract, S09_ValuesOfAnotherShape) {
  const auto right_value = this->value;
  this->value = {right_value.data_handle(), {2, 3, 7, 5}};
  EXPECT_EQ(this->error(), "value: length (got 7, expected 8 from key)");
  this->value = {right_value.data_handle(), {2, 6, 8, 5}};
  EXPECT_EQ(this->error(), "value: heads (got 6, expected 3 from key)");
  this->value = {right_value.data_handle(), {1, 3, 8, 5}};
  EXPECT_EQ(this->error(), "value: batch (got 1, expected 2 from query)");
  this->value = right_value;
  this->out = {this->out.data_handle(), {2, 6, 8, 4}};
  EXPECT_EQ(this->error(), "out: shape (got 2x6x8x4, expected 2x6x8x5)");
}

TYPED_TEST(Contract, S10_NegativeExtents) {
  for (std::size_t axis = 0; axis < 4; ++axis) {
    Shape<4> shape = this->sizes.query();
    shape[axis] = -1;
    this->query = {this->query.data_handle(), shape, {1, 1, 1, 1}};
    EXPECT_EQ(this->error(), "query: extent must be >= 0 (got -1)");
  }
}

TYPED_TEST(Contract, S10_SmallestExtent) {
  this->query = {this->query.data_handle(), {2, 6, std::numeric_limits<Index>::min(), 4}, {1, 1, 1, 1}};
  EXPECT_EQ(this->error(), "query: extent must be >= 0 (got " + std::to_string(std::numeric_limits<Index>::min()) + ")");
}

TYPED_TEST(Contract, S11_ElementCountOverflows) {
  this->query = {this->query.data_handle(), {Index{1} << 32, 6, Index{1} << 32, 4}, {0, 0, 0, 0}};
  EXPECT_EQ(this->template error<SizeError>(), "query: element count overflows");
}

TYPED_TEST(Contract, S12_ByteCountOverflows) {
  this->query = {this->query.data_handle(), {1, 1, Index{1} << 61, 1}, {0, 0, 1, 1}};
  EXPECT_EQ(this->template error<SizeError>(), "query: byte count overflows");
  this->query = {this->query.data_handle(), {2, 6, 8, 4}, {most, 1, 1, 1}};
  EXPECT_EQ(this->template error<SizeError>(), "query: byte count overflows");
  this->query = {this->query.data_handle(), {2, 6, 8, 4}, {-most - 1, 1, 1, 1}};
  EXPECT_EQ(this->template error<SizeError>(), "query: byte count overflows");
  this->query = {this->query.data_handle(), {2, 6, 8, 4}, {most / 4, most / 4, 1, 1}};
  EXPECT_EQ(this->template error<SizeError>(), "query: byte count overflows");
}

/// Strides between those that overflow and those that do not: addresses up to the last byte are never computed with.
TYPED_TEST(Contract, S12_StridesOfHalfTheAddressSpace) {
  const Sequential sequential;
  const auto right_out = this->out;
  for (const Index stride : {(Index{1} << 61) - 2, (Index{1} << 61) - 1, Index{1} << 61})
    for (const Index sign : {1, -1}) {
      // Rehearsals look at the shapes of what they cannot read.
      this->out = {right_out.data_handle(), {2, 6, 8, 5}, {sign * stride, 40, 5, 1}};
      DryRun dry;
      TypeParam::run(this->query, this->key, this->value, this->out, {}, longview::Run(sequential, dry));
      EXPECT_STREQ(dry.error(), (std::string(TypeParam::name) + ": out: byte count overflows").c_str()) << sign * stride;
      this->out = {right_out.data_handle(), {2, 6, 8, 5}, {sign * (stride / 2), 40, 5, 1}};
      TypeParam::run(this->query, this->key, this->value, this->out, {}, longview::Run(sequential, dry));
      // It may reach over other tensors.
      EXPECT_EQ(std::string(dry.error()).find("overflows"), std::string::npos) << sign * stride / 2;
    }
}

/// Nothing but the shapes is looked at, so that a rehearsal shows what a call would do.
TYPED_TEST(Contract, S13_ScratchOverflows) {
  const Sequential sequential;
  // Among them, sizes whose products wrap around to something small, and to 0.
  for (const int bits : {53, 54, 55, 56, 57, 58, 59})
    for (const Index less : {0, 5, 9, 13, 17, 21, 25, 29, 33, 37})
      for (const Index value_dim : {Index{1}, Index{8}, (Index{1} << bits) - less}) {
        const Index head_dim = (Index{1} << bits) - less;
        const TensorView<float, 4> narrow(nullptr, {1, 1, 1, head_dim}), wide(nullptr, {1, 1, 1, value_dim});
        EXPECT_EXIT(
            {
              DryRun dry;
              TypeParam::run(narrow, narrow, wide, wide, {}, longview::Run(sequential, dry));
              const auto least = static_cast<std::size_t>(head_dim);
              std::exit(!dry.ok() || dry.workspace_bytes() / sizeof(float) >= least ? 0 : 1);
            },
            ::testing::ExitedWithCode(0), "")
            << "head_dim 2^" << bits << " - " << less << ", value_dim " << value_dim;
        if (this->HasFailure()) return;
      }
}

TYPED_TEST(Contract, S13_TextWhereScratchOverflows) {
  const Sequential sequential;
  const TensorView<float, 4> wide(nullptr, {1, 1, 1, Index{1} << 58});
  DryRun dry;
  TypeParam::run(wide, wide, wide, wide, {}, longview::Run(sequential, dry));
  EXPECT_EQ(dry.error(), std::string(TypeParam::name) + ": run: workspace byte count overflows");
}

TYPED_TEST(Contract, L06_MisalignedPointers) {
  const auto odd = [](auto* at) { return reinterpret_cast<float*>(reinterpret_cast<char*>(at) + 1); };
  const auto right_query = this->query;
  this->query = {odd(right_query.data_handle()), right_query.shape()};
  EXPECT_EQ(this->error(), "query: pointer not aligned to 4");
  this->query = right_query;
  this->lse = {odd(this->lse.data_handle()), this->lse.shape()};
  EXPECT_EQ(this->error(), "lse: pointer not aligned to 4");
}

TYPED_TEST(Contract, L08_OutputsThatOverlap) {
  const auto right_out = this->out;
  this->value = {this->value.data_handle(), this->sizes.key()};
  this->out = {this->query.data_handle(), this->sizes.query()};
  EXPECT_EQ(this->error(), "out: overlaps query");
  this->out = {this->query.data_handle() - 1, this->sizes.query()};
  EXPECT_EQ(this->error(), "out: overlaps query");
  const auto last = this->query.data_handle() + test::count_of(this->sizes.query()) - 1;
  this->out = {last, this->sizes.query()};
  EXPECT_EQ(this->error(), "out: overlaps query");
  this->out = {this->key.data_handle() + 3, this->sizes.query()};
  EXPECT_EQ(this->error(), "out: overlaps key");
  this->out = {this->value.data_handle() + 95, this->sizes.query()};
  EXPECT_EQ(this->error(), "out: overlaps value");
  this->out = {right_out.data_handle(), this->sizes.query()};
  this->lse = {right_out.data_handle() + 5, this->sizes.lse()};
  EXPECT_EQ(this->error(), "lse: overlaps out");
}

TYPED_TEST(Contract, L08_MasksThatOutputsOverlap) {
  const float* const first = this->out.data_handle();
  this->scores.bias = {first, {1, 1, 8, 8}};
  EXPECT_NE(this->error().find("out: overlaps"), std::string::npos);
  this->scores.bias = {};
  this->scores.keep_mask = {reinterpret_cast<const std::uint8_t*>(first) + 7, {1, 1, 8, 8}};
  EXPECT_NE(this->error().find("out: overlaps"), std::string::npos);
}

/// Against every element's address, on small views that may run backwards, skip and interleave.
TEST(ContractOverlap, L08_L09_NeverMissesACommonElement) {
  test::Random random(8);
  std::vector<float> memory(4096);
  int refused = 0, accepted = 0, cautious = 0;
  for (int turn = 0; turn < 20000; ++turn) {
    const auto view = [&] {
      Shape<4> shape{}, stride{};
      Index span = random.integer(1, 3);
      Index first = 2048;
      const auto order = random.permutation(4);
      for (const Index axis : order) {
        const auto at = static_cast<std::size_t>(axis);
        shape[at] = random.integer(1, 3), stride[at] = span;
        span *= shape[at] + random.integer(0, 2);
        if (random.chance(20)) first += (shape[at] - 1) * stride[at], stride[at] = -stride[at];
      }
      return TensorView<float, 4>(memory.data() + first + random.integer(-12, 12), shape, stride);
    };
    const auto a = view();
    const auto b = random.chance(50) ? view() : TensorView<float, 4>(a.data_handle() + random.integer(-30, 30), a.shape(),
                                                                     a.strides());
    bool meet = false;
    for (Index at = 0; at < test::count_of(a.shape()); ++at)
      for (Index other = 0; other < test::count_of(b.shape()); ++other)
        meet = meet || &test::element(a, test::place_of(at, a.shape())) == &test::element(b, test::place_of(other, b.shape()));
    const longview::Run run;
    longview::detail::Contract contract("overlap", run);
    contract.output("a", a), contract.input("b", b);
    const bool accepts = test::error_of<ContractError>([&] { contract.accepted(); }) == "no error";
    ASSERT_FALSE(meet && accepts) << test::text_of(a.shape()) << test::text_of(a.strides()) << test::text_of(b.shape())
                                  << test::text_of(b.strides()) << b.data_handle() - a.data_handle();
    ++(accepts ? accepted : meet ? refused : cautious);
  }
  EXPECT_GT(refused, 2000);
  EXPECT_GT(accepted, 2000);
  RecordProperty("refused_without_need", cautious);
}

TEST(ContractOverlap, L09_PackedBuffersAreAccepted) {
  std::vector<float> memory(8192);
  const auto accepts = [](const TensorView<float, 4>& out, const TensorView<float, 4>& in) {
    const longview::Run run;
    longview::detail::Contract contract("overlap", run);
    contract.output("out", out), contract.input("in", in);
    return test::error_of<ContractError>([&] { contract.accepted(); }) == "no error";
  };
  // (batch, length, heads of query, key, value and out, dim), with 4, 1, 1 and 4 heads; also with one head, one row.
  for (const Index batch : {1, 2})
    for (const Index length : {1, 5})
      for (const Index heads : {1, 4}) {
        const auto all = TensorView<float, 4>(memory.data(), {batch, length, 2 * heads + 2, 6}).transpose(1, 2);
        const auto out = all.slice(1, heads + 2, heads);
        EXPECT_TRUE(accepts(out, all.slice(1, 0, heads))) << batch << length << heads;
        EXPECT_TRUE(accepts(out, all.slice(1, heads, 1))) << batch << length << heads;
        EXPECT_TRUE(accepts(out, all.slice(1, heads + 1, 1))) << batch << length << heads;
        EXPECT_FALSE(accepts(out, all.slice(1, heads + 1, 2))) << batch << length << heads;
      }
  // Even and odd channels; columns of one matrix.
  EXPECT_TRUE(accepts({memory.data(), {1, 1, 8, 4}, {64, 64, 8, 2}}, {memory.data() + 1, {1, 1, 8, 4}, {64, 64, 8, 2}}));
  EXPECT_TRUE(accepts({memory.data(), {1, 1, 8, 4}, {64, 64, 10, 1}}, {memory.data() + 4, {1, 1, 8, 6}, {64, 64, 10, 1}}));
  EXPECT_FALSE(accepts({memory.data(), {1, 1, 8, 5}, {64, 64, 10, 1}}, {memory.data() + 4, {1, 1, 8, 6}, {64, 64, 10, 1}}));
}

TYPED_TEST(Contract, L10_OutputsThatOverlapThemselves) {
  const auto right_out = this->out;
  this->out = {right_out.data_handle(), right_out.shape(), {240, 0, 5, 1}};
  EXPECT_EQ(this->error(), "out: elements overlap (stride 0 on dim 1)");
  this->out = {right_out.data_handle(), right_out.shape(), {240, 40, 4, 1}};
  EXPECT_EQ(this->error(), "out: elements overlap");
  this->out = {right_out.data_handle(), right_out.shape(), {240, 40, -3, 1}};
  EXPECT_EQ(this->error(), "out: elements overlap");
  this->out = right_out;
  this->lse = {this->lse.data_handle(), this->lse.shape(), {48, 8, 0}};
  EXPECT_EQ(this->error(), "lse: elements overlap (stride 0 on dim 2)");
}

TYPED_TEST(Contract, L13_NullData) {
  const auto null = [](const auto& view) { return TensorView<float, 4>(nullptr, view.shape()); };
  // A rehearsal accepts null data, so only the call is asked.
  const auto text = [&](const auto& q, const auto& k, const auto& v, const auto& o) {
    return test::error_of<ContractError>([&] { TypeParam::run(q, k, v, o, {}); });
  };
  const std::string name = std::string(TypeParam::name) + ": ";
  EXPECT_EQ(text(null(this->query), this->key, this->value, this->out), name + "query: null data for 384 elements");
  EXPECT_EQ(text(this->query, null(this->key), this->value, this->out), name + "key: null data for 192 elements");
  EXPECT_EQ(text(this->query, this->key, null(this->value), this->out), name + "value: null data for 240 elements");
  EXPECT_EQ(text(this->query, this->key, this->value, null(this->out)), name + "out: null data for 480 elements");
}

/// The argument's name in the text is the one that the caller has written.
TYPED_TEST(Contract, L13_NullDataOfOptions) {
  const auto text = [&](const Scores<float>& options) {
    return test::error_of<ContractError>(
        [&] { TypeParam::run(this->query, this->key, this->value, this->out, options); });
  };
  const std::string name = std::string(TypeParam::name) + ": " + TypeParam::scores;
  EXPECT_EQ(text({.keep_mask = {nullptr, {1, 1, 8, 8}}}), name + "keep_mask: null data for 64 elements");
  EXPECT_EQ(text({.bias = {nullptr, {1, 1, 8, 8}}}), name + "bias: null data for 64 elements");
}

TYPED_TEST(Contract, M10_MasksOfAnotherShape) {
  const std::vector<std::uint8_t> mask(1000, 1);
  const std::vector<float> bias(1000);
  this->scores.keep_mask = {mask.data(), {1, 1, 7, 8}};
  EXPECT_EQ(this->error(), this->option("keep_mask") + ": shape (got 1x1x7x8, expected 2x6x8x8)");
  this->scores.keep_mask = {mask.data(), {3, 1, 8, 8}};
  EXPECT_EQ(this->error(), this->option("keep_mask") + ": shape (got 3x1x8x8, expected 2x6x8x8)");
  this->scores.keep_mask = {mask.data(), {1, 1, 0, 8}};
  EXPECT_EQ(this->error(), this->option("keep_mask") + ": shape (got 1x1x0x8, expected 2x6x8x8)");
  this->scores.keep_mask = {};
  this->scores.bias = {bias.data(), {1, 3, 8, 8}};
  EXPECT_EQ(this->error(), this->option("bias") + ": shape (got 1x3x8x8, expected 2x6x8x8)");
  this->scores.bias = {bias.data(), {1, 1, 8, 9}};
  EXPECT_EQ(this->error(), this->option("bias") + ": shape (got 1x1x8x9, expected 2x6x8x8)");
}

TYPED_TEST(Contract, M10_ListsOfAnotherSize) {
  const std::vector<float> five(5, 1.0F);
  this->scores.sinks = five;
  EXPECT_EQ(this->error(), this->option("sinks") + ": size (got 5, expected 6 from query)");
  if (!TypeParam::takes_slopes) return;
  this->scores.sinks = {};
  this->scores.alibi_slopes = five;
  EXPECT_EQ(this->error(), this->option("alibi_slopes") + ": size (got 5, expected 6 from query)");
}

TYPED_TEST(Contract, M27_KeyLengths) {
  std::vector<Index> lengths{8, 9};
  this->scores.key_lengths = lengths;
  const std::string item = this->option("key_lengths") + "[1]: out of range (got ";
  EXPECT_EQ(this->error(), item + "9, expected 0 to 8)");
  for (const Index wrong : {Index{-1}, Index{std::numeric_limits<int>::max()}, most, -most - 1}) {
    lengths[1] = wrong;
    EXPECT_EQ(this->error(), item + std::to_string(wrong) + ", expected 0 to 8)");
  }
  lengths.pop_back();
  this->scores.key_lengths = lengths;
  EXPECT_EQ(this->error(), this->option("key_lengths") + ": size (got 1, expected 2 from batch)");
}

TYPED_TEST(Contract, N14_ScaleAndSoftcap) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (const double wrong : {infinity, -infinity, nan}) {
    this->scores.scale = wrong;
    EXPECT_EQ(this->error(), this->option("scale") + ": must be finite");
  }
  for (const double wrong : {1e39, -1e300}) {
    this->scores.scale = wrong;
    EXPECT_EQ(this->error(), this->option("scale") + ": beyond the range of the elements");
  }
  this->scores.scale = {};
  for (const double wrong : {infinity, nan, 0.0, -1.0}) {
    this->scores.softcap = wrong;
    EXPECT_EQ(this->error(), this->option("softcap") + ": must be finite and > 0 (got " + std::to_string(wrong) + ")");
  }
}

TYPED_TEST(Contract, TooFewWorkers) {
  for (const Index workers : {0, -1}) {
    const test::Reversed executor{workers};
    EXPECT_EQ(test::error_of<ContractError>([&] {
                TypeParam::run(this->query, this->key, this->value, this->out, {}, executor);
              }),
              std::string(TypeParam::name) + ": run: concurrency must be >= 1 (got " + std::to_string(workers) + ")");
  }
}

TYPED_TEST(Contract, T01_AnyNumberOfWorkers) {
  for (const Index workers : {Index{1} << 31, Index{1} << 60, most}) {
    const test::Reversed executor{workers};
    EXPECT_NO_THROW(TypeParam::run(this->query, this->key, this->value, this->out, {}, executor)) << workers;
  }
}

TYPED_TEST(Contract, TypesOfErrors) {
  EXPECT_TRUE((std::is_base_of_v<std::invalid_argument, ContractError>));
  EXPECT_TRUE((std::is_base_of_v<std::length_error, SizeError>));
  EXPECT_FALSE((std::is_base_of_v<std::invalid_argument, SizeError>));
}

// ---- Alignment

TEST(FullAttentionContract, M14_AlignmentMustBeNamed) {
  std::vector<float> memory(1000);
  const std::vector<float> slopes(1);
  const TensorView<float, 4> query(memory.data(), {1, 1, 2, 4}), key(memory.data() + 100, {1, 1, 5, 4}),
      out(memory.data() + 200, {1, 1, 2, 4});
  const std::string reason = "must be named when lengths differ (got 2 queries, 5 keys)";
  const auto full = [&](const Scores<float>& scores) {
    return test::error_of<ContractError>([&] { longview::full_attention(query, key, key, out, scores); });
  };
  EXPECT_EQ(full({.causal = true}), "full_attention: options.alignment: " + reason);
  EXPECT_EQ(full({.alibi_slopes = slopes}), "full_attention: options.alignment: " + reason);
  EXPECT_EQ(full({}), "no error");
  EXPECT_EQ(full({.causal = true, .alignment = Alignment::top_left}), "no error");
  EXPECT_EQ(full({.causal = true, .alignment = Alignment::at(-1)}), "no error");
  const auto window = [&](const Scores<float>& scores) {
    return test::error_of<ContractError>(
        [&] { longview::sliding_window_attention(query, key, key, out, {.window = {1, 1}, .scores = scores}); });
  };
  EXPECT_EQ(window({}), "sliding_window_attention: options.scores.alignment: " + reason);
  EXPECT_EQ(window({.alignment = Alignment::bottom_right}), "no error");
  // In several pieces, queries are the newest positions.
  EXPECT_NO_THROW((longview::full_attention(query, longview::KeyValueView<float>{{key, key}}, out, {.causal = true})));
}

TEST(FullAttentionContract, M14_OffsetsTooLarge) {
  std::vector<float> memory(1000);
  const TensorView<float, 4> query(memory.data(), {1, 1, 2, 4}), out(memory.data() + 200, {1, 1, 2, 4});
  for (const Index offset : {most, -most - 1, most / 2})
    EXPECT_EQ(test::error_of<ContractError>([&] {
                longview::full_attention(query, query, query, out, {.causal = true, .alignment = Alignment::at(offset)});
              }),
              "full_attention: options.alignment: offset too large (got " + std::to_string(offset) + ")");
}

TEST(FullAttentionContract, SegmentsOfKeys) {
  std::vector<float> memory(2000);
  const TensorView<float, 4> query(memory.data(), {1, 2, 2, 4}), key(memory.data() + 100, {1, 1, 5, 4}),
      two_heads(memory.data() + 200, {1, 2, 5, 4}), narrow(memory.data() + 300, {1, 1, 5, 3}),
      out(memory.data() + 400, {1, 2, 2, 4});
  using Keys = longview::KeyValueView<float>;
  const auto text = [&](const Keys& keys) {
    return test::error_of<ContractError>([&] { longview::full_attention(query, keys, out); });
  };
  const std::string name = "full_attention: ";
  EXPECT_EQ(text({{key, key}, {two_heads, two_heads}}), name + "keys[1].key: heads (got 2, expected 1 from the first segment)");
  EXPECT_EQ(text({{key, key}, {narrow, key}}), name + "keys[1].key: head_dim (got 3, expected 4 from query)");
  EXPECT_EQ(text({{key, key}, {key, narrow}}), name + "keys[1].value: value_dim (got 3, expected 4 from the first value)");
  EXPECT_EQ(text({{key, key}, {key, key, 4}}),
            name + "keys[1].key: position: segments must not go back (got 4, expected at least 5)");
  EXPECT_EQ(text({{key, key, -1}}), name + "key: position: segments must not go back (got -1, expected at least 0)");
  EXPECT_EQ(text({{key, key, 3}, {key, key, 8}}), "no error");
  EXPECT_EQ(test::error_of<SizeError>([&] { longview::full_attention(query, Keys{{key, key, most / 2}}, out); }),
            name + "key: position too large (got " + std::to_string(most / 2) + ")");
  const longview::KeyValue<float> piece{key, key, {}};
  EXPECT_EQ(test::error_of<ContractError>([&] { Keys({piece, piece, piece, piece, piece}); }),
            "KeyValueView: segments: there must be one to four");
  EXPECT_EQ(test::error_of<ContractError>([&] { Keys(std::initializer_list<longview::KeyValue<float>>{}); }),
            "KeyValueView: segments: there must be one to four");
}

// ---- Windows

struct Self {
  std::vector<float> memory = std::vector<float>(4000);
  TensorView<float, 4> query{memory.data(), {2, 3, 9, 4}}, key{memory.data() + 500, {2, 3, 9, 4}},
      out{memory.data() + 1000, {2, 3, 9, 4}};
};

TEST(SlidingWindowContract, M19_NegativeReach) {
  Self of;
  const auto text = [&](const longview::SlidingWindowOptions<float>& options) {
    return test::error_of<ContractError>([&] { longview::sliding_window_attention(of.query, of.key, of.key, of.out, options); });
  };
  const std::string name = "sliding_window_attention: options.";
  EXPECT_EQ(text({.window = {.before = -1}}), name + "window.before: must be >= 0 (got -1)");
  EXPECT_EQ(text({.window = {.after = -2}}), name + "window.after: must be >= 0 (got -2)");
  EXPECT_EQ(text({.window = {.before = -most - 1}}),
            name + "window.before: must be >= 0 (got " + std::to_string(-most - 1) + ")");
  std::vector<longview::Window> windows{{1, 1}, {1, 1}, {1, -1}};
  EXPECT_EQ(text({.head_windows = windows}), name + "head_windows[2].after: must be >= 0 (got -1)");
  windows.pop_back();
  EXPECT_EQ(text({.head_windows = windows}), name + "head_windows: size (got 2, expected 3 from query)");
}

TEST(SlidingWindowContract, M20_Dilation) {
  Self of;
  for (const Index dilation : {Index{0}, Index{-3}}) {
    const std::string reason = ": must be >= 1 (got " + std::to_string(dilation) + ")";
    const std::vector<longview::Window> windows{{1, 1}, {1, 1, dilation}, {1, 1}};
    EXPECT_EQ(test::error_of<ContractError>([&] {
                longview::sliding_window_attention(of.query, of.key, of.key, of.out, {.window = {1, 1, dilation}});
              }),
              "sliding_window_attention: options.window.dilation" + reason);
    EXPECT_EQ(test::error_of<ContractError>([&] {
                longview::longformer_attention(of.query, of.key, of.key, of.out, {.head_windows = windows});
              }),
              "longformer_attention: options.head_windows[1].dilation" + reason);
  }
}

// ---- Longformer

class LongformerContract : public ::testing::Test {
 protected:
  std::string error(const longview::LongformerOptions<float>& options) {
    const std::vector<float> before = of.memory;
    const std::string text = test::error_of<ContractError>(
        [&] { longview::longformer_attention(of.query, of.key, of.key, of.out, options); });
    EXPECT_TRUE(std::memcmp(before.data(), of.memory.data(), before.size() * sizeof(float)) == 0);
    const std::string name = "longformer_attention: ";
    return text.compare(0, name.size(), name) == 0 ? text.substr(name.size()) : text;
  }
  Self of;
};

TEST_F(LongformerContract, M22_DuplicatesInAnyOrder) {
  for (const std::vector<Index>& tokens :
       {std::vector<Index>{4, 4}, {1, 4, 4}, {4, 1, 4}, {4, 1, 2, 4}, {4, 8, 1, 4, 0}, {0, 1, 2, 4, 3, 4}, {8, 7, 4, 4}})
    EXPECT_EQ(error({.global = {.tokens = {.indices = tokens}}}), "options.global.tokens: global index 4 given twice")
        << test::text_of(tokens);
}

/// All lists of up to four of four tokens.
TEST_F(LongformerContract, M22_ExhaustiveDuplicates) {
  for (Index code = 0; code < 4 * 4 * 4 * 4; ++code) {
    const std::vector<Index> tokens{code % 4, code / 4 % 4, code / 16 % 4, code / 64};
    bool twice = false;
    for (std::size_t a = 0; a < 4; ++a)
      for (std::size_t b = 0; b < a; ++b) twice = twice || tokens[a] == tokens[b];
    EXPECT_EQ(error({.global = {.tokens = {.indices = tokens}}}) != "no error", twice) << test::text_of(tokens);
  }
}

TEST_F(LongformerContract, M23_TokensOutOfRange) {
  for (const Index token : {Index{9}, Index{-1}, most, -most - 1}) {
    const std::vector<Index> tokens{0, token};
    EXPECT_EQ(error({.global = {.tokens = {.indices = tokens}}}),
              "options.global.tokens: global index " + std::to_string(token) + " out of range [0, 9)");
  }
}

TEST_F(LongformerContract, M28_Offsets) {
  const std::vector<Index> tokens{1, 2, 3, 4};
  const auto text = [&](const std::vector<Index>& offsets) {
    return error({.global = {.tokens = {.indices = tokens, .offsets = offsets}}});
  };
  EXPECT_EQ(text({0, 4}), "options.global.tokens.offsets: size (got 2, expected 3 from batch + 1)");
  EXPECT_EQ(text({1, 2, 4}).find("options.global.tokens.offsets[0]: "), 0U);
  EXPECT_NE(text({1, 2, 4}).find("(got 1, expected 0)"), std::string::npos);
  EXPECT_NE(text({0, 5, 4}).find("must not decrease (at 2)"), std::string::npos) << text({0, 5, 4});
  EXPECT_NE(text({0, -1, 4}).find("must not decrease (at 1)"), std::string::npos);
  EXPECT_EQ(text({0, 2, 3}), "options.global.tokens.offsets: last (got 3, expected 4 from indices)");
  EXPECT_EQ(text({0, 2, most}), "options.global.tokens.offsets: last (got " + std::to_string(most) +
                                    ", expected 4 from indices)");
  EXPECT_EQ(text({0, 0, 4}), "no error");
}

TEST_F(LongformerContract, S10_L13_MasksOfTokenSets) {
  const std::vector<std::uint8_t> mask(100, 1);
  std::vector<Index> storage;
  const auto text = [&](const TensorView<const std::uint8_t, 2>& tokens) {
    return test::error_of<ContractError>([&] { longview::token_sets(tokens, storage); });
  };
  EXPECT_EQ(text({mask.data(), {-1, 3}}), "token_sets: mask: extent must be >= 0 (got -1)");
  EXPECT_EQ(text({mask.data(), {2, -3}}), "token_sets: mask: extent must be >= 0 (got -3)");
  EXPECT_EQ(text({nullptr, {2, 3}}), "token_sets: mask: null data for 6 elements");
  EXPECT_EQ(text({nullptr, {2, 0}}), "no error");
  EXPECT_EQ(text({}), "no error");
}

TEST_F(LongformerContract, OptionsWithoutMeaning) {
  const std::vector<float> slopes(3);
  EXPECT_EQ(error({.scores = {.alignment = Alignment::top_left}}),
            "options.scores.alignment: has no meaning in self-attention");
  EXPECT_EQ(error({.scores = {.alibi_slopes = slopes}}),
            "options.scores.alibi_slopes: has no meaning here: global tokens have no distance");
}

TEST_F(LongformerContract, ShapesOfItsOwnTensors) {
  const std::vector<std::uint8_t> keep(100, 1);
  const TensorView<float, 4> shorter(of.memory.data(), {2, 3, 8, 4});
  EXPECT_EQ(error({.keep_tokens = {keep.data(), {2, 8}}}), "options.keep_tokens: shape (got 2x8, expected 2x9)");
  EXPECT_EQ(error({.global = {.query = shorter}}), "options.global.query: shape (got 2x3x8x4, expected 2x3x9x4)");
  EXPECT_EQ(error({.global = {.key = shorter, .value = shorter}}),
            "options.global.key: shape (got 2x3x8x4, expected 2x3x9x4)");
  EXPECT_EQ(error({.global = {.key = of.key}}), "options.global: key and value come together");
  EXPECT_EQ(error({.global = {.query = of.out}}), "out: overlaps options.global.query");
  of.key = {of.memory.data() + 500, {2, 3, 8, 4}};
  EXPECT_EQ(error({}), "key: length (got 8, expected 9 from query: this is self-attention)");
}

// ---- Relative

TEST(RelativeContract, PositionTable) {
  Self of;
  const std::vector<float> table(1000);
  const auto text = [&](const longview::RelativeOptions<float>& options) {
    const std::string got = test::error_of<ContractError>(
        [&] { longview::relative_attention(of.query, of.key, of.key, of.out, options); });
    const std::string name = "relative_attention: ";
    return got.compare(0, name.size(), name) == 0 ? got.substr(name.size()) : got;
  };
  const auto rows = [&](Index heads, Index distances, Index dim) {
    return TensorView<const float, 3>(table.data(), {heads, distances, dim});
  };
  EXPECT_EQ(text({}), "options.position: is required");
  EXPECT_EQ(text({.position = rows(2, 9, 4)}), "options.position: heads (got 2, expected 3 from query)");
  EXPECT_EQ(text({.position = rows(3, 9, 3)}), "options.position: head_dim (got 3, expected 4 from query)");
  EXPECT_EQ(text({.position = rows(1, 8, 4)}), "options.position: distances (got 8, expected at least 9)");
  EXPECT_EQ(text({.position = rows(1, 3, 4), .before = 3}), "options.position: distances (got 3, expected at least 4)");
  EXPECT_EQ(text({.position = rows(1, 2, 4), .clamp = 2}), "options.position: distances (got 2, expected at least 3)");
  EXPECT_EQ(text({.position = rows(1, 9, 4)}), "no error");
  EXPECT_EQ(text({.position = rows(1, 4, 4), .before = 3}), "no error");
  EXPECT_EQ(text({.position = rows(1, 3, 4), .clamp = 2}), "no error");
  EXPECT_EQ(text({.position = rows(1, 3, 4), .before = 5, .clamp = 2}), "no error");
  EXPECT_EQ(text({.position = rows(1, 9, 4), .before = -1}), "options.before: must be >= 0 (got -1)");
  EXPECT_EQ(text({.position = rows(1, 9, 4), .clamp = -1}), "options.clamp: must be >= 0 (got -1)");
  EXPECT_EQ(text({.position = rows(1, 9, 4), .before = most, .clamp = most}), "no error");
  const TensorView<const float, 2> bias(table.data(), {2, 4}), narrow(table.data(), {1, 3});
  EXPECT_EQ(text({.position = rows(1, 9, 4), .content_bias = bias}),
            "options.content_bias: heads (got 2, expected 3 from query)");
  EXPECT_EQ(text({.position = rows(1, 9, 4), .position_bias = narrow}),
            "options.position_bias: head_dim (got 3, expected 4 from query)");
  EXPECT_EQ(text({.position = rows(1, 9, 4), .scores = {.alignment = Alignment::bottom_right}}),
            "options.scores.alignment: is always bottom_right here");
  EXPECT_EQ(text({.position = {of.out.data_handle(), {1, 9, 4}}}).substr(0, 13), "out: overlaps");
}

TEST(RelativeContract, SinusoidalPositions) {
  std::vector<float> memory(100);
  const auto text = [&](const TensorView<float, 2>& out, std::optional<Index> clamp = {}) {
    return test::error_of<ContractError>([&] { longview::sinusoidal_positions(out, clamp); });
  };
  const std::string name = "sinusoidal_positions: ";
  EXPECT_EQ(text({memory.data(), {4, 3}}), name + "out: width must be even (got 3)");
  EXPECT_EQ(text({memory.data(), {4, 4}}, -1), name + "clamp: must be >= 0 (got -1)");
  EXPECT_EQ(text({memory.data(), {4, 4}, {0, 1}}), name + "out: elements overlap (stride 0 on dim 0)");
  EXPECT_EQ(text({nullptr, {4, 4}}), name + "out: null data for 16 elements");
  EXPECT_EQ(text({nullptr, {4, 0}}), "no error");
  EXPECT_EQ(text({memory.data(), {0, 4}}), "no error");
}

// ---- Reporting

TEST(DryRun, ReportsAnEmptyErrorWhereAllIsWell) {
  Self of;
  const Sequential sequential;
  DryRun dry;
  longview::full_attention(of.query, of.key, TensorView<float, 4>(of.memory.data(), {2, 3, 8, 4}), of.out, {},
                           longview::Run(sequential, dry));
  EXPECT_FALSE(dry.ok());
  EXPECT_EQ(dry.workspace_bytes(), 0U);
  longview::full_attention(of.query, of.key, of.key, of.out, {}, longview::Run(sequential, dry));
  EXPECT_TRUE(dry.ok());
  EXPECT_STREQ(dry.error(), "");
  EXPECT_GT(dry.workspace_bytes(), 0U);
}

TEST(DryRun, LongTextsAreCut) {
  DryRun dry;
  dry.report_error(std::string(5000, 'x').c_str());
  EXPECT_EQ(std::strlen(dry.error()), 511U);
}

TEST(FailureHandler, ReturnsTheOneBefore) {
  const FailureHandler handler = [](const char*) { std::abort(); };
  const FailureHandler before = longview::set_failure_handler(handler);
  EXPECT_EQ(longview::set_failure_handler(before), handler);
  EXPECT_EQ(longview::set_failure_handler(before), before);
}

}  // namespace
