#include "bodies.hpp"

template struct longview::FullAttention<float>;
template struct longview::SlidingWindowAttention<float>;
template struct longview::LongformerAttention<float>;
template struct longview::RelativeAttention<float>;
template struct longview::LinformerAttention<float>;
template struct longview::PerformerAttention<float>;
