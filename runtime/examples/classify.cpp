// classify.cpp: the same with the C++ wrapper, for one input of raw bytes or .npy: the best class, and the latency.
//
//     classify_cpp deploy input.npy
#include <algorithm>
#include <cstdio>
#include <dna_runtime.hpp>
#include <exception>

extern "C" {
#include "preprocess.h"
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        std::fprintf(stderr, "usage: classify_cpp DEPLOYMENT INPUT\n");
        return 2;
    }
    try {
        const dna::deployment deployment(argv[1]);
        dna::request request{dna::runner(deployment)};

        const dna_tensor_info info = deployment.input(0);
        preprocessing how = {};
        std::fill(std::begin(how.std), std::end(how.std), 1.0f);
        char why[FILES_ERROR];
        if (!load_input(argv[2], &info, &how, request.input<float>(0).data(), why)) throw std::runtime_error(why);

        const dna::pending run = request.start();
        while (run.wait_for(std::chrono::seconds(1)) != std::future_status::ready) std::fprintf(stderr, "running ...\n");
        run.get();

        const auto scores = request.output<float>(0);
        const auto best = std::max_element(scores.begin(), scores.end());
        const dna_metrics metrics = request.metrics();
        std::printf("class %td with %.4f; %.3f ms, %.3f ms on the device\n", best - scores.begin(), double(*best),
                    metrics.wall_ms, metrics.device_ms);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "classify_cpp: %s\n", error.what());
        return 1;
    }
}
