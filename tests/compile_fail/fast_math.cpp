// error: LONGVIEW_ALLOW_FAST_MATH
// flags: -ffast-math
#include <longview/longview.hpp>
