// wrapper.cpp: wrapper CASE: dna_runtime.hpp gives what the C interface gives, and throws what it refuses.
#include <algorithm>
#include <atomic>
#include <dna_runtime.hpp>
#include <thread>

extern "C" {
#include "case.h"
}

template <class F> static void refused(dna_status want, const char *what, F call)
{
    try {
        call();
    } catch (const dna::error &error) {
        CHECK(error.status() == want && error.what()[0], "%s: %s (%s)", what, dna_status_name(error.status()), error.what());
        return;
    }
    CHECK(false, "%s was not refused", what);
}

static void fill(const test_case &c, dna::request &request)
{
    const array &x = c.inputs[0];
    const dna::span<float> memory = request.input<float>(0);
    CHECK(memory.size_bytes() == x.bytes, "%zu bytes", memory.size_bytes());
    std::copy_n(static_cast<const float *>(x.data), memory.size(), memory.begin());
}

static void runs(const test_case &c, const dna::deployment &deployment)
{
    dna::request request{dna::runner(deployment)}; // keeps what it needs of the runner
    const dna_tensor_info info = deployment.input(0);
    CHECK(deployment.find_input(info.name) == 0 && deployment.input_count() == 1, "%s", info.name);
    fill(c, request);
    request.run();
    case_check_outputs(&c, request.get());
    CHECK(request.output<float>(0).data() == dna_request_output_handle(request.get(), 0, nullptr), "a copy was made");
    CHECK(request.output<float>(0).size_bytes() == c.outputs[0].bytes, "another size");
    CHECK(request.metrics().cycles > 0 && deployment.clock_mhz() > 0, "no cycles");

    dna::request moved = std::move(request);
    moved.start().get();
    case_check_outputs(&c, moved.get());
}

static void in_flight(const test_case &c, const dna::deployment &deployment)
{
    dna::options options;
    options.requests = 3;
    options.target = DNA_TARGET_INTERPRETER_HW;
    const dna::runner runner(deployment, options);
    CHECK(runner.target() == DNA_TARGET_INTERPRETER_HW && runner.request_bytes() > 0, "another target");
    std::vector<dna::request> requests;
    for (int i = 0; i < 5; i++) {
        requests.emplace_back(runner);
        fill(c, requests.back());
    }
    std::atomic<int> called{0};
    std::vector<dna::pending> pending;
    for (dna::request &request : requests)
        pending.push_back(request.start([&called](dna_status status) { called += status == DNA_OK; }));
    for (const dna::pending &run : pending) {
        while (run.wait_for(std::chrono::milliseconds(5)) != std::future_status::ready) {
        }
        run.get();
    }
    CHECK(called == 5, "%d callbacks", called.load());
    for (dna::request &request : requests) case_check_outputs(&c, request.get());

    std::atomic<bool> open{false};
    dna::request &held = requests[0];
    const dna::pending run = held.start([&open](dna_status) {
        while (!open) std::this_thread::yield();
    });
    CHECK(run.wait_for(std::chrono::milliseconds(2)) == std::future_status::timeout, "ready while it is held");
    refused(DNA_STATE, "a second start", [&] { held.start(); });
    refused(DNA_STATE, "a second start with a callback", [&] { held.start([](dna_status) {}); });
    open = true;
    held = dna::request(runner); // waits for the run
}

int main(int argc, char **argv)
{
    CHECK(argc == 2, "usage: wrapper CASE");
    test_case c;
    case_load(&c, argv[1]);
    const dna::deployment deployment(c.deployment_path);
    runs(c, deployment);
    in_flight(c, deployment);
    const dna::runner runner(deployment);
    dna::request request(runner);
    refused(DNA_INVALID_ARGUMENT, "a folder that is not there", [] { dna::deployment("nowhere"); });
    refused(DNA_INVALID_ARGUMENT, "an input that is not there", [&] { deployment.input(7); });
    refused(DNA_INVALID_ARGUMENT, "a name that is not there", [&] { request.input<float>("nobody"); });
    refused(DNA_INVALID_ARGUMENT, "another dtype", [&] { request.input<std::int8_t>(0); });
    refused(DNA_STATE, "a run without inputs", [&] { request.run(); });
    refused(DNA_INVALID_ARGUMENT, "70 requests", [&] {
        dna::options options;
        options.requests = 70;
        dna::runner(deployment, options);
    });
    case_free(&c);
    return 0;
}
