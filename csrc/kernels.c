/* kernels.c: which kernel sets there are, and which the CPU can run. */
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86_KERNELS 1
extern const mera_kernels mera_kernels_avx2, mera_kernels_avx512vnni;
#endif

#ifdef _OPENMP
#define FEATURE_PREFIX "openmp; kernels: "
#else
#define FEATURE_PREFIX "no openmp; kernels: "
#endif

const mera_kernels *const *kernels_all(void)
{
    static const mera_kernels *const all[] = {
#ifdef HAS_X86_KERNELS
        &mera_kernels_avx512vnni, &mera_kernels_avx2,
#endif
        &mera_kernels_generic, NULL};
    return all;
}

bool kernels_supported(const mera_kernels *kernels)
{
#ifdef HAS_X86_KERNELS
    if (kernels == &mera_kernels_avx2) return __builtin_cpu_supports("avx2");
    if (kernels == &mera_kernels_avx512vnni)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return kernels == &mera_kernels_generic;
}

const char *kernels_features(const mera_kernels *best)
{
#ifdef HAS_X86_KERNELS
    if (best == &mera_kernels_avx2) return FEATURE_PREFIX "avx2";
    if (best == &mera_kernels_avx512vnni) return FEATURE_PREFIX "avx512vnni";
#endif
    (void)best;
    return FEATURE_PREFIX "generic";
}
