// SPDX-License-Identifier: Apache-2.0
#include "gradient_laws.hpp"
#include "longview/full_attention.hpp"

namespace test {

using Operators = ::testing::Types<FullAttention<float>, FullAttention<double>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, GradientLaws, Operators, GradientOperatorName);

}  // namespace test
