// Byte models that count: order k predicts a byte from the k bytes before it.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

/// Orders 0, 1 and 2, each mixed with the next lower one by Witten and Bell's rule: a context seen n times, with u
/// different bytes after it, says (count + u * lower) / (n + u).
class ByteCounts {
 public:
  static constexpr int orders = 3;

  explicit ByteCounts(std::span<const std::uint8_t> text) {
    std::size_t contexts = 1;
    for (Order& order : orders_) {
      order.counts.resize(256 * contexts), order.seen.resize(contexts), order.different.resize(contexts);
      contexts *= 256;
    }
    for (std::size_t at = 0; at < text.size(); ++at)
      for (std::size_t order = 0; order <= 2 && order <= at; ++order) {
        const std::size_t context = context_of(text, at, order);
        ++orders_[order].seen[context];
        if (orders_[order].counts[256 * context + text[at]]++ == 0) ++orders_[order].different[context];
      }
  }

  /// Bits that each order takes for text[at].
  std::array<double, orders> bits(std::span<const std::uint8_t> text, std::size_t at) const {
    std::array<double, orders> bits{};
    double probability = 1.0 / 256;
    for (std::size_t order = 0; order <= 2; ++order) {
      if (order <= at) {
        const std::size_t context = context_of(text, at, order);
        const double different = orders_[order].different[context];
        if (orders_[order].seen[context] > 0)
          probability = (orders_[order].counts[256 * context + text[at]] + different * probability) /
                        (orders_[order].seen[context] + different);
      }
      bits[order] = -std::log2(probability);
    }
    return bits;
  }

 private:
  struct Order {
    std::vector<std::uint32_t> counts, seen, different;
  };
  static std::size_t context_of(std::span<const std::uint8_t> text, std::size_t at, std::size_t order) {
    std::size_t context = 0;
    for (std::size_t back = order; back > 0; --back) context = 256 * context + text[at - back];
    return context;
  }

  std::array<Order, orders> orders_;
};
