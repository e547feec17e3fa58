// error: ReadableAs
#include <longview/longview.hpp>

longview::TensorView<float, 4> call(longview::TensorView<const float, 4> x) { return x; }
