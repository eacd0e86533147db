#include "graph.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

namespace mmpack {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::milliseconds(50);

double now() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

/// What an output is until its last reader has had it.
struct Value {
  std::optional<View> place;  // where it was written to: in `block`, or in a caller's tensor
  Sizes sizes;                // of `place`
  Blocks::Block block;
  Output other;               // what it is if it was not

  void keep(const View& view) {
    sizes.assign(view.sizes.begin(), view.sizes.end());
    place = View{view.data, sizes, view.dtype, view.bytes};
  }

  Input input() const {
    if (place) {
      return *place;
    }
    if (const Fresh* made = std::get_if<Fresh>(&other)) {
      return made->view();
    }
    if (const int64_t* whole = std::get_if<int64_t>(&other)) {
      return *whole;
    }
    if (const double* number = std::get_if<double>(&other)) {
      return *number;
    }
    if (const bool* flag = std::get_if<bool>(&other)) {
      return *flag;
    }
    return std::monostate();
  }
};

}  // namespace

Graph::Graph(std::vector<Call> calls)
    : calls_(std::move(calls)), after_(calls_.size()), readers_(calls_.size()) {
  for (size_t number = 0; number < calls_.size(); ++number) {
    for (size_t other : calls_[number].before) {
      if (other >= number) {
        throw std::invalid_argument("a call waits for one that does not come before it");
      }
      after_[other].push_back(number);
    }
    for (const Source& source : calls_[number].inputs) {
      if (const Result* result = std::get_if<Result>(&source)) {
        auto& counts = readers_.at(result->call);
        counts.resize(std::max(counts.size(), result->output + 1));
        ++counts[result->output];
      }
    }
  }
}

/// One run of a graph.
class Running {
 public:
  Running(
      const Graph& graph,
      std::span<const std::shared_ptr<Method>> methods,
      std::span<const Strided> tensors,
      const Order& order,
      size_t lanes,
      std::span<const int64_t> delays)
      : graph_(graph), calls_(graph.calls_), methods_(methods), tensors_(tensors), order_(order),
        delays_(delays), values_(calls_.size()), readers_(graph.readers_), lanes_(lanes),
        busy_(methods.size()) {
    for (size_t number = 0; number < calls_.size(); ++number) {
      missing_.push_back(calls_[number].before.size());
      values_[number].resize(readers_[number].size());
      lane_of(number).queue.push_back(number);
      if (missing_[number] == 0) {
        lane_of(number).ready.insert({order_.ranks[number], number});
      }
    }
    for (Lane& lane : lanes_) {
      std::ranges::sort(lane.queue, {}, [&](size_t number) { return order_.ranks[number]; });
      lane.left = lane.queue.size();
    }
  }

  /// What the thread of a worker does.
  void serve(size_t lane, size_t worker) {
    std::unique_lock held(lock_);
    while (const auto number = take(held, lane)) {
      held.unlock();
      const double begin = now();
      std::string failed;
      // Left standing if the thread is ended from outside, which no handler may stop.
      Fallen fallen{*this, *number};
      try {
        perform(*number);
      } catch (const std::exception& error) {
        failed = error.what();
      }
      const double end = now();
      fallen.stands = true;
      held.lock();
      if (!failed.empty()) {
        fail(*number, failed);
        return;
      }
      finish({*number, worker, begin, end});
    }
  }

  void wait(const std::function<bool()>& interrupted) {
    std::unique_lock held(lock_);
    while (!stopped_ && ran_.size() != calls_.size()) {
      over_.wait_for(held, kPatience);
      held.unlock();
      if (interrupted()) {
        stop();
      }
      held.lock();
    }
  }

  void stop() {
    const std::lock_guard held(lock_);
    end();
  }

  /// Once all threads have ended.
  std::vector<Ran> result() {
    if (!failures_.empty()) {
      const auto& [number, text] = *failures_.begin();
      throw CallFailed(number, text);
    }
    return std::move(ran_);
  }

 private:
  struct Lane {
    std::vector<size_t> queue;  // by rank
    size_t first = 0;           // of the queue that has not been taken, if the lane waits
    size_t left = 0;
    std::set<std::pair<size_t, size_t>> ready;  // rank and number
  };

  struct Fallen {
    Running& running;
    size_t number;
    bool stands = false;
    ~Fallen() {
      if (!stands) {
        const std::lock_guard held(running.lock_);
        running.fail(number, "the thread that ran it has been ended");
      }
    }
  };

  Lane& lane_of(size_t number) {
    return lanes_.at(calls_[number].lane);
  }

  bool idle(size_t number) const {
    const size_t method = calls_[number].method;
    return method == Call::kNothing || !busy_[method];
  }

  /// The next call of a lane, once there is one; nothing if there will be none.
  std::optional<size_t> take(std::unique_lock<std::mutex>& held, size_t lane_number) {
    Lane& lane = lanes_[lane_number];
    while (!stopped_ && lane.left != 0) {
      if (const auto number = next(lane)) {
        lane.ready.erase({order_.ranks[*number], *number});
        --lane.left;
        ++lane.first;
        if (calls_[*number].method != Call::kNothing) {
          busy_[calls_[*number].method] = true;
        }
        return number;
      }
      changed_.wait(held);
    }
    return std::nullopt;
  }

  std::optional<size_t> next(const Lane& lane) const {
    if (order_.waits) {
      const size_t number = lane.queue[lane.first];
      return missing_[number] == 0 && idle(number) ? std::optional(number) : std::nullopt;
    }
    for (const auto& [rank, number] : lane.ready) {
      if (idle(number)) {
        return number;
      }
    }
    return std::nullopt;
  }

  void finish(const Ran& ran) {
    ran_.push_back(ran);
    if (ran_.size() == calls_.size()) {
      over_.notify_one();
    }
    const Call& call = calls_[ran.call];
    if (call.method != Call::kNothing) {
      busy_[call.method] = false;
    }
    for (const Source& source : call.inputs) {
      const Result* result = std::get_if<Result>(&source);
      if (result != nullptr && --readers_[result->call][result->output] == 0) {
        values_[result->call][result->output] = Value();
      }
    }
    for (size_t other : graph_.after_[ran.call]) {
      if (--missing_[other] == 0) {
        lane_of(other).ready.insert({order_.ranks[other], other});
      }
    }
    changed_.notify_all();
  }

  void fail(size_t number, const std::string& text) {
    failures_.emplace(number, text);
    end();
  }

  void end() {
    stopped_ = true;
    changed_.notify_all();
    over_.notify_one();
  }

  void perform(size_t number) {
    if (!delays_.empty()) {
      if (delays_[number] < 0) {
        pthread_exit(nullptr);
      }
      std::this_thread::sleep_for(std::chrono::microseconds(delays_[number]));
    }
    const Call& call = calls_[number];
    if (call.method == Call::kNothing) {
      return;
    }
    Method& method = *methods_[call.method];

    std::vector<Blocks::Block> gathered;
    std::vector<Region> regions;
    regions.reserve(call.inputs.size());  // views refer to their sizes
    std::vector<Input> inputs;
    for (const Source& source : call.inputs) {
      if (const Result* result = std::get_if<Result>(&source)) {
        inputs.push_back(values_[result->call][result->output].input());
        continue;
      }
      const Rows& rows = std::get<Rows>(source);
      const Region& region = regions.emplace_back(tensors_[rows.tensor], rows);
      View view = region.view();
      if (!region.dense()) {
        gathered.emplace_back(&blocks_, view.bytes);
        copy(gathered.back().data, dense_strides(region.sizes), region.data, region.strides,
             region.sizes, item_of(region.dtype));
        view.data = gathered.back().data;
      }
      inputs.push_back(view);
    }

    // Straight to the first place that has room for the whole output as it is; or to a block.
    std::vector<Region> places;
    places.reserve(call.copies.size());
    for (const Copy& wanted : call.copies) {
      places.emplace_back(tensors_[wanted.rows.tensor], wanted.rows);
    }
    std::vector<Value> made(method.outputs());
    std::vector<std::optional<View>> given(method.outputs());
    std::vector<const Region*> direct(method.outputs());
    for (size_t output = 0; output < made.size(); ++output) {
      const auto largest = method.largest(output);
      if (!largest) {
        continue;
      }
      for (size_t i = 0; i < places.size() && direct[output] == nullptr; ++i) {
        if (call.copies[i].output == output && places[i].dtype == largest->dtype &&
            std::ranges::equal(places[i].sizes, largest->sizes) && places[i].dense()) {
          direct[output] = &places[i];
        }
      }
      View place = *largest;
      if (direct[output] != nullptr) {
        place.data = direct[output]->data;
      } else {
        made[output].block = Blocks::Block(&blocks_, largest->bytes);
        place.data = made[output].block.data;
      }
      given[output] = place;
    }

    std::vector<Output> outputs(method.outputs());
    method.run(inputs, given, outputs);
    for (size_t output = 0; output < outputs.size(); ++output) {
      if (std::get_if<Written>(&outputs[output]) != nullptr) {
        made[output].keep(*given[output]);
      } else {
        made[output].other = std::move(outputs[output]);
        direct[output] = nullptr;
      }
    }
    for (size_t i = 0; i < places.size(); ++i) {
      if (direct[call.copies[i].output] != &places[i]) {
        put(made.at(call.copies[i].output), places[i]);
      }
    }
    for (size_t output = 0; output < values_[number].size(); ++output) {
      values_[number][output] = std::move(made.at(output));
      // Its sizes have moved.
      Value& value = values_[number][output];
      if (value.place) {
        value.place->sizes = value.sizes;
      }
    }
  }

  /// As many rows of an output as there is room for.
  static void put(const Value& value, const Region& place) {
    const Input input = value.input();
    const View* view = std::get_if<View>(&input);
    bool fits = view != nullptr && view->dtype == place.dtype &&
        view->sizes.size() == place.sizes.size();
    for (size_t i = 0; fits && i < place.sizes.size(); ++i) {
      fits = i == place.axis ? place.sizes[i] <= view->sizes[i] : place.sizes[i] == view->sizes[i];
    }
    if (!fits) {
      throw Failure("an output does not fit where it is to go");
    }
    copy(place.data, place.strides, static_cast<const uint8_t*>(view->data),
         dense_strides(view->sizes), place.sizes, item_of(place.dtype));
  }

  const Graph& graph_;
  const std::vector<Call>& calls_;
  const std::span<const std::shared_ptr<Method>> methods_;
  const std::span<const Strided> tensors_;
  const Order& order_;
  const std::span<const int64_t> delays_;
  Blocks blocks_;  // outlives the values in it
  // A value is written by its call, and read by calls that begin after the end of that was noted.
  std::vector<std::vector<Value>> values_;
  // Below, all under the lock.
  std::mutex lock_;
  std::condition_variable changed_;
  std::condition_variable over_;
  std::vector<std::vector<size_t>> readers_;
  std::vector<Lane> lanes_;
  std::vector<size_t> missing_;
  std::vector<bool> busy_;
  std::vector<Ran> ran_;
  std::map<size_t, std::string> failures_;
  bool stopped_ = false;
};

std::vector<Ran> Graph::run(
    std::span<const std::shared_ptr<Method>> methods,
    std::span<const Strided> tensors,
    const Order& order,
    std::span<const size_t> workers,
    std::span<const int64_t> delays,
    const std::function<bool()>& interrupted) const {
  if (order.ranks.size() != calls_.size() ||
      (!delays.empty() && delays.size() != calls_.size())) {
    throw std::invalid_argument("expected one rank, and one delay, for each call");
  }
  Running running(*this, methods, tensors, order, workers.size(), delays);
  std::vector<std::thread> threads;
  const auto end = [&] {
    running.stop();
    for (std::thread& thread : threads) {
      thread.join();
    }
  };
  try {
    for (size_t lane = 0; lane < workers.size(); ++lane) {
      for (size_t worker = 0; worker < workers[lane]; ++worker) {
        threads.emplace_back([&running, lane, worker] { running.serve(lane, worker); });
        pthread_setname_np(threads.back().native_handle(), "mmpack");
      }
    }
    running.wait(interrupted);
  } catch (...) {
    end();
    throw;
  }
  end();
  return running.result();
}

}  // namespace mmpack
