// Deformable attention on the CPU.
//
// A task handles a few heads of one image. It first spreads their values out as planes, then takes the queries block by
// block. The backward accumulates the value gradient in such planes too: it needs no atomics, and the order of
// additions never depends on the threads.
//
// This file is compiled once per instruction set; dispatch.cpp chooses.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "deform_attn_kernel.h"
#include "dispatch.h"
#include "parallel.h"

namespace piip {
namespace PIIP_ISA {
namespace {

constexpr int64_t kGroupBytes = int64_t(3) << 19;  // the most that the planes of a task take

// The memory of one thread.
template <class T>
struct Workspace {
  Samples<T> samples;
  Scratch<T> planes;  // the values; in the backward the planes of their gradient follow
  Scratch<T> rows;    // [query][head], the outputs of a block or their gradients, where storage has another type
};

// All tasks of a call share this.
template <class T, class S, int N>
struct Plan {
  static constexpr bool kInPlace = std::is_same_v<S, T>;  // the kernels work on the output or its gradient itself

  const DeformAttn& a;
  Layout layout;
  Planes<T, N> planes;
  int group;                   // heads per task
  int64_t groups;              // groups of heads per image
  int64_t step;                // elements from query to query in the output
  int64_t spacing;             // elements from query to query in Workspace::rows
  int whole;                   // items of a head, rounded up to whole vectors
  std::vector<int64_t> below;  // [sample], elements from a cell to the one below it
  std::vector<Workspace<T>> spaces;

  Plan(const DeformAttn& problem, int threads)
      : a(problem),
        layout(problem, padded<N>(problem.width) / Samples<T>::kStep),
        planes{problem, layout, padded<N>(problem.width)},
        step(int64_t(problem.heads) * problem.width),
        whole((planes.pitch + N - 1) / N * N) {
    const int samples = a.levels * a.points_per_level;
    // Two heads go together, which share cache lines, as long as their planes stay in the cache and no thread is left
    // without work.
    group = std::clamp(int(64 / sizeof(T)) / samples, 1, std::min(2, a.heads));
    const int64_t enough = threads > 1 ? 2 * threads : 1;
    while (group > 1 && (group * planes.size() * int64_t(sizeof(T)) > kGroupBytes ||
                         a.batch * ((a.heads + group - 1) / group) < enough))
      group /= 2;
    groups = (a.heads + group - 1) / group;
    spacing = int64_t(group) * planes.pitch;
    // Rows of samples are filled up to whole vectors.
    for (int i = 0; i < samples + kLanes<T>; ++i)
      below.push_back(int64_t(layout.row[std::min(i / a.points_per_level, a.levels - 1)]) * planes.pitch);
  }

  void allocate(int threads, bool backward) {
    for (int i = 0; i < threads; ++i) {
      Samples<T> samples(a, layout, planes.pitch, group, backward);
      Scratch<T> rows(kInPlace ? 0 : samples.queries * spacing);
      spaces.push_back({std::move(samples), Scratch<T>((backward ? 2 : 1) * group * planes.size()), std::move(rows)});
    }
  }

  Heads heads(int64_t task) const {
    const int first = int(task % groups) * group;
    return {task / groups, first, std::min(group, a.heads - first)};
  }

  // Items in the last vector of a head's row of `items` items.
  int last(int items) const { return N - (whole - items); }

  // Elements before a query's part of the output or its gradient.
  int64_t row(Heads heads, int64_t query) const {
    return (heads.image * a.queries + query) * step + int64_t(heads.first) * a.width;
  }
};

template <class T, class S, class P, int N>
void forward(const DeformAttn& a, int threads) {
  constexpr bool kInPlace = Plan<T, S, N>::kInPlace;
  Plan<T, S, N> plan(a, threads);
  // With fewer tasks than threads the queries are split; each part spreads the planes out for itself.
  const int64_t tasks = a.batch * plan.groups;
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(a.queries / 32, threads / tasks));
  threads = int(std::min<int64_t>(threads, tasks * parts));
  plan.allocate(threads, false);
  use_large_pages(a.out, a.batch * a.queries * plan.step * int64_t(sizeof(S)));

  parallel_for(tasks * parts, threads, [&](int64_t task, int slot) {
    auto& [samples, planes, rows] = plan.spaces[slot];
    const Heads heads = plan.heads(task / parts);
    plan.planes.template fill<S>(heads, planes.data());
    const int64_t part = task % parts, last = a.queries * (part + 1) / parts;
    for (int64_t first = a.queries * part / parts; first < last; first += samples.queries) {
      const int count = int(std::min<int64_t>(samples.queries, last - first));
      samples.template prepare<P>(heads, first, count);
      S* out = static_cast<S*>(a.out) + plan.row(heads, first);
      T* target = kInPlace ? reinterpret_cast<T*>(out) : rows.data();
      const int64_t spacing = kInPlace ? plan.step : plan.spacing;
      // The order is ascending: where a head's vectors are too long, the next head overwrites what they leave behind.
      for (int h = 0; h < heads.count; ++h) {
        const int room = std::min((heads.count - h) * a.width, plan.whole);
        Kernel<T, N>::forward({samples, plan.below.data(), h, count, plan.planes.pitch},
                              planes.data() + h * plan.planes.size(),
                              {target + h * a.width, spacing, plan.last(room), samples.queries * spacing});
      }
      for (int q = 0; q < count && !kInPlace; ++q) {
        prefetch<kToWrite>(out + (q + samples.queries) * plan.step, heads.count * a.width);
        narrow_items<T, kLanes<T>>(target + q * spacing, out + q * plan.step, heads.count * a.width);
      }
    }
  });
}

template <class T, class S, class P, int N>
void backward(const DeformAttn& a, int threads) {
  constexpr bool kInPlace = Plan<T, S, N>::kInPlace;
  Plan<T, S, N> plan(a, threads);
  const int64_t tasks = a.batch * plan.groups, plane = plan.planes.size();
  threads = int(std::min<int64_t>(threads, tasks));
  plan.allocate(threads, true);
  const int64_t samples_in_all = a.batch * a.queries * a.heads * a.levels * a.points_per_level;
  use_large_pages(a.grad_value, a.batch * a.cells * plan.step * int64_t(sizeof(S)));
  use_large_pages(a.grad_points, samples_in_all * 2 * int64_t(sizeof(P)));
  use_large_pages(a.grad_weights, samples_in_all * int64_t(sizeof(P)));

  parallel_for(tasks, threads, [&](int64_t task, int slot) {
    auto& [samples, planes, rows] = plan.spaces[slot];
    const Heads heads = plan.heads(task);
    const int pitch = plan.planes.pitch;
    const int64_t to_grad = plan.group * plane, ahead = samples.queries * plan.step;
    plan.planes.template fill<S>(heads, planes.data());
    std::fill(planes.data() + to_grad, planes.data() + to_grad + heads.count * plane, T(0));
    for (int64_t first = 0; first < a.queries; first += samples.queries) {
      const int count = int(std::min<int64_t>(samples.queries, a.queries - first));
      samples.template prepare<P>(heads, first, count);
      const S* grads = static_cast<const S*>(a.grad_out) + plan.row(heads, first);
      HeadRows<const T> sources{reinterpret_cast<const T*>(grads), plan.step, plan.last(a.width), ahead};
      if (!kInPlace) sources = {rows.data(), plan.spacing, plan.last(pitch), 0};
      for (int q = 0; q < count && !kInPlace; ++q) {
        prefetch(grads + q * plan.step + ahead, heads.count * a.width);
        for (int h = 0; h < heads.count; ++h)
          plan.planes.widen_cell(grads + q * plan.step + h * a.width, rows.data() + q * plan.spacing + h * pitch);
      }
      for (int h = 0; h < heads.count; ++h, sources.first += kInPlace ? a.width : pitch)
        Kernel<T, N>::backward({samples, plan.below.data(), h, count, pitch}, planes.data() + h * plane, to_grad,
                               sources);
      samples.template finish<P>(heads, first, count);
    }
    plan.planes.template store<S>(heads, planes.data() + to_grad);
  });
}

template <class T, class S, class P, int N>
struct Forward {
  static void call(const DeformAttn& a, int threads) { forward<T, S, P, N>(a, threads); }
};
template <class T, class S, class P, int N>
struct Backward {
  static void call(const DeformAttn& a, int threads) { backward<T, S, P, N>(a, threads); }
};

template <template <class, class, class, int> class Run>
void dispatch(const DeformAttn& a, int threads) {
  constexpr int kWide = kLanes<float>, kNarrow = std::min(kWide, 8);
  const bool narrow = a.width <= kNarrow;  // two neighbours along x then fill a vector
  const auto run = [&](auto storage, auto point) {
    using S = decltype(storage);
    using P = decltype(point);
    if constexpr (sizeof(S) == 8) {
      Run<double, S, P, kLanes<double>>::call(a, threads);
    } else if (narrow) {
      Run<float, S, P, kNarrow>::call(a, threads);
    } else {
      Run<float, S, P, kWide>::call(a, threads);
    }
  };
  const bool wide_points = a.point_dtype == Dtype::f32;
  switch (a.value_dtype) {
    case Dtype::f64: run(double(), double()); break;
    case Dtype::f16: wide_points ? run(Half(), float()) : run(Half(), Half()); break;
    case Dtype::bf16: wide_points ? run(Bfloat(), float()) : run(Bfloat(), Bfloat()); break;
    default: run(float(), float()); break;
  }
}

}  // namespace

void deform_attn_forward(const DeformAttn& a, int threads) { dispatch<Forward>(a, threads); }
void deform_attn_backward(const DeformAttn& a, int threads) { dispatch<Backward>(a, threads); }

}  // namespace PIIP_ISA
}  // namespace piip
