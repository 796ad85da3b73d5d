/* dna_runtime.hpp: dna_runtime.h for C++17: objects that free themselves, exceptions, typed views. Header only; nothing
 * is copied: a view is the request's own memory.
 *
 *     dna::deployment deployment("deploy");
 *     dna::runner runner(deployment);
 *     dna::request request(runner);
 *     std::copy(image.begin(), image.end(), request.input<float>(0).begin());
 *     request.run();
 *     for (float score : request.output<float>(0)) ...
 *
 * Threads, lifetimes and the meaning of each call are those of dna_runtime.h. */
#ifndef DNA_RUNTIME_HPP
#define DNA_RUNTIME_HPP

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "dna_runtime.h"

namespace dna
{

/* What every failure throws: what() is the runtime's sentence. */
class error : public std::runtime_error
{
  public:
    error(dna_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    dna_status status() const noexcept { return status_; }

  private:
    dna_status status_;
};

/* std::span's essentials, which C++17 lacks. */
template <class T> class span
{
  public:
    using value_type = std::remove_cv_t<T>;
    using iterator = T *;
    constexpr span() noexcept = default;
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    constexpr T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr std::size_t size_bytes() const noexcept { return size_ * sizeof(T); }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + size_; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};

/* Whether elements of a dtype can be seen as T; float16 and bfloat16 are seen as their 16 bits. */
template <class T> bool holds(dna_dtype dtype) noexcept
{
    using V = std::remove_cv_t<T>;
    switch (dtype) {
    case DNA_FLOAT32:
        return std::is_same_v<V, float>;
    case DNA_FLOAT64:
        return std::is_same_v<V, double>;
    case DNA_INT8:
        return std::is_same_v<V, std::int8_t>;
    case DNA_UINT8:
        return std::is_same_v<V, std::uint8_t>;
    case DNA_INT16:
        return std::is_same_v<V, std::int16_t>;
    case DNA_INT32:
        return std::is_same_v<V, std::int32_t>;
    case DNA_INT64:
        return std::is_same_v<V, std::int64_t>;
    case DNA_BOOL:
        return std::is_same_v<V, bool> && sizeof(bool) == 1;
    case DNA_FLOAT16:
    case DNA_BFLOAT16:
        return std::is_same_v<V, std::uint16_t>;
    }
    return false;
}

namespace detail
{
inline void check(dna_status status, const dna_error &e)
{
    if (status != DNA_OK) throw error(status, e.message);
}
} // namespace detail

/* A deployment; copies share it. Throws error, as all that follows. */
class deployment
{
  public:
    explicit deployment(const std::string &folder)
    {
        dna_deployment *made = nullptr;
        dna_error e;
        detail::check(dna_deployment_load(folder.c_str(), &made, &e), e);
        handle_.reset(made, dna_deployment_free);
    }
    std::int32_t input_count() const noexcept { return dna_deployment_input_count(get()); }
    std::int32_t output_count() const noexcept { return dna_deployment_output_count(get()); }
    dna_tensor_info input(std::int32_t index) const { return info(dna_deployment_input, "input", index); }
    dna_tensor_info output(std::int32_t index) const { return info(dna_deployment_output, "output", index); }
    std::int32_t find_input(const std::string &name) const { return found(dna_deployment_find_input, "input", name); }
    std::int32_t find_output(const std::string &name) const { return found(dna_deployment_find_output, "output", name); }
    const char *platform() const noexcept { return dna_deployment_platform(get()); }
    double clock_mhz() const noexcept { return dna_deployment_clock_mhz(get()); }
    dna_target target() const noexcept { return dna_deployment_target(get()); }
    const char *explanation() const noexcept { return dna_deployment_explanation(get()); }
    dna_deployment *get() const noexcept { return handle_.get(); }

  private:
    template <class F> dna_tensor_info info(F function, const char *what, std::int32_t index) const
    {
        dna_tensor_info found;
        const dna_status status = function(get(), index, &found);
        if (status != DNA_OK) throw error(status, std::string("there is no ") + what + " " + std::to_string(index));
        return found;
    }
    template <class F> std::int32_t found(F function, const char *what, const std::string &name) const
    {
        const std::int32_t index = function(get(), name.c_str());
        if (index < 0) throw error(DNA_INVALID_ARGUMENT, std::string("there is no ") + what + " named " + name);
        return index;
    }
    std::shared_ptr<dna_deployment> handle_;
};

/* dna_runner_options with the devices' addresses kept. */
struct options {
    dna_target target = DNA_TARGET_DEFAULT;
    std::int32_t requests = 0;
    std::int32_t threads = 0;
    std::int32_t timeout_ms = 0;
    std::vector<std::string> devices = {};
};

/* A deployment on a target; copies share it. */
class runner
{
  public:
    explicit runner(dna::deployment deployment, const options &wanted = {}) : deployment_(std::move(deployment))
    {
        std::vector<const char *> devices;
        for (const std::string &device : wanted.devices) devices.push_back(device.c_str());
        dna_runner_options o = {};
        o.target = wanted.target;
        o.requests = wanted.requests;
        o.threads = wanted.threads;
        o.timeout_ms = wanted.timeout_ms;
        o.device_count = static_cast<std::int32_t>(devices.size());
        o.devices = devices.data();
        dna_runner *made = nullptr;
        dna_error e;
        detail::check(dna_runner_create(deployment_.get(), &o, &made, &e), e);
        handle_.reset(made, dna_runner_free);
    }
    const dna::deployment &deployment() const noexcept { return deployment_; }
    dna_target target() const noexcept { return dna_runner_target(get()); }
    std::int64_t request_bytes() const noexcept { return dna_runner_request_bytes(get()); }
    dna_runner *get() const noexcept { return handle_.get(); }

  private:
    dna::deployment deployment_;
    std::shared_ptr<dna_runner> handle_;
};

/* A started run, to wait for as for a std::future. Its request must outlive it. */
class pending
{
  public:
    explicit pending(dna_request *request) noexcept : request_(request) {}
    bool ready() const noexcept { return dna_request_done(request_) != 0; }
    /* Waits; throws what the run failed with. */
    void get() const
    {
        const dna_status status = dna_request_wait(request_, -1);
        if (status != DNA_OK) throw error(status, dna_request_error(request_));
    }
    template <class Rep, class Period>
    std::future_status wait_for(const std::chrono::duration<Rep, Period> &timeout) const noexcept
    {
        const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
        dna_request_wait(request_, ms < 0 ? 0 : static_cast<std::int64_t>(ms));
        return ready() ? std::future_status::ready : std::future_status::timeout;
    }

  private:
    dna_request *request_;
};

/* One inference at a time, and its memory. Moves, does not copy. */
class request
{
  public:
    explicit request(const runner &on) : deployment_(on.deployment())
    {
        dna_request *made = nullptr;
        dna_error e;
        detail::check(dna_request_create(on.get(), &made, &e), e);
        handle_.reset(made);
    }
    request(request &&) noexcept = default;
    request &operator=(request &&other) noexcept
    {
        handle_ = std::move(other.handle_); /* first: it waits for a run that may yet call callback_ */
        callback_ = std::move(other.callback_);
        deployment_ = std::move(other.deployment_);
        return *this;
    }
    /* The request's own memory. Throws error(DNA_INVALID_ARGUMENT) if there is no such tensor or it holds no T. */
    template <class T> span<T> input(std::int32_t index)
    {
        check_type<T>(deployment_.input(index), "input", index);
        std::size_t bytes = 0;
        return {static_cast<T *>(dna_request_input_handle(get(), index, &bytes)), bytes / sizeof(T)};
    }
    template <class T> span<const T> output(std::int32_t index) const
    {
        check_type<T>(deployment_.output(index), "output", index);
        std::size_t bytes = 0;
        return {static_cast<const T *>(dna_request_output_handle(get(), index, &bytes)), bytes / sizeof(T)};
    }
    template <class T> span<T> input(const std::string &name) { return input<T>(deployment_.find_input(name)); }
    template <class T> span<const T> output(const std::string &name) const
    {
        return output<T>(deployment_.find_output(name));
    }
    void run() { check(dna_request_run(get())); }
    pending start()
    {
        check(dna_request_start(get(), nullptr, nullptr));
        return pending(get());
    }
    /* `done` is called in a thread of the runner; an exception that leaves it ends the program. */
    pending start(std::function<void(dna_status)> done)
    {
        if (!dna_request_done(get())) throw error(DNA_STATE, "the request runs already; wait for it first");
        callback_ = std::make_unique<std::function<void(dna_status)>>(std::move(done));
        check(dna_request_start(get(), on_done, callback_.get()));
        return pending(get());
    }
    dna_metrics metrics() const
    {
        dna_metrics found;
        check(dna_request_metrics(get(), &found));
        return found;
    }
    dna_request *get() const noexcept { return handle_.get(); }

  private:
    struct freed {
        void operator()(dna_request *request) const noexcept { dna_request_free(request); }
    };
    static void on_done(void *user, dna_request *, dna_status status) noexcept
    {
        (*static_cast<std::function<void(dna_status)> *>(user))(status);
    }
    void check(dna_status status) const
    {
        if (status != DNA_OK) throw error(status, dna_request_error(get()));
    }
    template <class T> static void check_type(const dna_tensor_info &info, const char *what, std::int32_t index)
    {
        if (!holds<T>(info.dtype))
            throw error(DNA_INVALID_ARGUMENT, std::string(what) + " " + std::to_string(index) + " (" + info.name +
                                                  ") holds " + dna_dtype_name(info.dtype));
    }
    dna::deployment deployment_;
    std::unique_ptr<std::function<void(dna_status)>> callback_; /* outlives the request, which waits when it is freed */
    std::unique_ptr<dna_request, freed> handle_;
};

} // namespace dna

#endif
