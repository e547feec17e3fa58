// What a project writes into a header of its own, so that the bodies are compiled in one file.
#pragma once
#include <longview/longview.hpp>

extern template struct longview::FullAttention<float>;
extern template struct longview::SlidingWindowAttention<float>;
extern template struct longview::LongformerAttention<float>;
extern template struct longview::RelativeAttention<float>;
extern template struct longview::LinformerAttention<float>;
extern template struct longview::PerformerAttention<float>;
