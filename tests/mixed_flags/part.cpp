// Compiled once per set of flags, with PART as the name of its function. Nothing of std is instantiated here: its
// functions, unlike ours, are shared by all files of a program, whatever their flags.
#include <longview/longview.hpp>

extern "C" void PART(float* out);

// out: 2 heads, 70 queries, 40 channels.
extern "C" void PART(float* out) {
  constexpr longview::Index heads = 2, length = 70, dim = 40;
  static float data[heads * length * dim];
  for (longview::Index i = 0; i < heads * length * dim; ++i)
    data[i] = static_cast<float>(i * 7919 % 1009) / 512.0F - 1.0F;
  const longview::TensorView<const float, 4> x(data, {1, heads, length, dim});
  longview::full_attention(x, x, x, longview::TensorView<float, 4>(out, {1, heads, length, dim}), {.causal = true});
}
