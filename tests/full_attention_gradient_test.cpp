// SPDX-License-Identifier: Apache-2.0
#include "gradient_laws.hpp"
#include "longview/full_attention.hpp"

namespace test {

using Operators = ::testing::Types<FullAttention<float>, FullAttention<double>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, GradientLaws, Operators, GradientOperatorName);

}  // namespace test

namespace {

template <typename T>
class FullAttentionGradients : public ::testing::Test {};
struct Name {
  template <typename T>
  static std::string GetName(int) {
    return sizeof(T) == 4 ? "float" : "double";
  }
};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(FullAttentionGradients, Numbers, Name);

TYPED_TEST(FullAttentionGradients, D02_KeysInPieces) {
  for (const bool causal : {false, true})
    test::expect_the_same_gradients_in_pieces<TypeParam>(
        {2, 4, 2, 60, 150, 9, 10}, 21,
        [&](auto query, const auto& keys, const auto& out) {
          longview::full_attention(query, keys, out, {.causal = causal});
        },
        [&](auto query, const auto& keys, const auto& out, const auto& gradients) {
          longview::full_attention_backward(query, keys, test::Output<const TypeParam>(out), gradients,
                                            {.causal = causal});
        });
}

}  // namespace
