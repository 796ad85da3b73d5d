/* platform.c: the table of platforms, and what every platform must satisfy. */
#include <math.h>

#include "core.h"

static const mera_platform platforms[] = {
#define MERA_PLATFORM(name, units, array, clock_mhz, sram_kib, dram_gbps, bf16, banks, latency)                             \
    {name, units, array, clock_mhz, (int64_t)(sram_kib)*1024, dram_gbps, bf16, banks, latency},
#include "dna_arch.def"
};
enum { PLATFORM_COUNT = sizeof platforms / sizeof *platforms };

static const struct {
    const char *alias, *name;
} aliases[] = {
#define MERA_ALIAS(alias, name) {alias, name},
#include "dna_arch.def"
};
enum { ALIAS_COUNT = sizeof aliases / sizeof *aliases };

int32_t mera_platform_count(void) { return PLATFORM_COUNT; }

const mera_platform *mera_platform_at(int32_t index)
{
    return index >= 0 && index < PLATFORM_COUNT ? &platforms[index] : NULL;
}

const char *mera_platform_alias(int32_t index, int32_t *platform_index)
{
    if (index < 0 || index >= ALIAS_COUNT) return NULL;
    *platform_index = -1;
    for (int32_t i = 0; i < PLATFORM_COUNT; i++)
        if (strcmp(platforms[i].name, aliases[index].name) == 0) *platform_index = i;
    return aliases[index].alias;
}

static const struct {
    const char *name, *doc;
    int64_t value;
} constants[] = {
#define MERA_ARCH(name, value, doc) {#name, doc, value},
#include "dna_arch.def"
};

int32_t mera_arch_count(void) { return sizeof constants / sizeof *constants; }
static bool is_constant(int32_t index) { return index >= 0 && index < mera_arch_count(); }
const char *mera_arch_name(int32_t index) { return is_constant(index) ? constants[index].name : NULL; }
int64_t mera_arch_value(int32_t index) { return is_constant(index) ? constants[index].value : 0; }
const char *mera_arch_doc(int32_t index) { return is_constant(index) ? constants[index].doc : NULL; }

static const struct cycle_kind {
    const char *name, *doc;
} cycle_kinds[] = {
#define MERA_CYCLE(name, text, doc) {text, doc},
#include "dna_arch.def"
};

int32_t mera_cycle_kind_count(void) { return CYCLE_KINDS; }
const char *mera_cycle_kind_name(int32_t kind) { return kind >= 0 && kind < CYCLE_KINDS ? cycle_kinds[kind].name : NULL; }
const char *mera_cycle_kind_doc(int32_t kind) { return kind >= 0 && kind < CYCLE_KINDS ? cycle_kinds[kind].doc : NULL; }

static bool power_of_two(int64_t x) { return x > 0 && (x & (x - 1)) == 0; }

mera_status mera_platform_check(mera_context *ctx, const mera_platform *p)
{
    if (!memchr(p->name, '\0', sizeof p->name) || p->name[0] == '\0')
        return fail(ctx, MERA_INVALID_ARGUMENT, "platform: name must be 1 to %d bytes", (int)sizeof p->name - 1);
#define REQUIRE(ok, sentence, format, value)                                                                                \
    if (!(ok)) return fail(ctx, MERA_INVALID_ARGUMENT, "platform '%s': " sentence ", got " format, p->name, value)
    REQUIRE(p->units >= 1 && p->units <= 16, "units must be 1 to 16", "%d", p->units);
    REQUIRE(power_of_two(p->array) && p->array >= 16 && p->array <= 128, "array must be 16, 32, 64 or 128", "%d", p->array);
    REQUIRE(isfinite(p->clock_mhz) && p->clock_mhz >= 0.001 && p->clock_mhz <= 100000, "clock_mhz must be 0.001 to 100000",
            "%g", p->clock_mhz);
    REQUIRE(p->sram_bytes >= 1024 && p->sram_bytes <= (int64_t)1 << 30 && p->sram_bytes % 1024 == 0,
            "sram_bytes must be a multiple of 1024 from 1024 to 1 GiB", "%lld", (long long)p->sram_bytes);
    REQUIRE(isfinite(p->dram_gbps) && p->dram_gbps > 0 && p->dram_gbps <= 100000,
            "dram_gbps must be above 0 and at most 100000", "%g", p->dram_gbps);
    const double bytes_per_cycle = p->dram_gbps * 1e3 / p->clock_mhz;
    REQUIRE(bytes_per_cycle >= 0.001 && bytes_per_cycle <= 1e6, "dram_gbps must give 0.001 to 1000000 bytes a cycle", "%g",
            bytes_per_cycle);
    REQUIRE(p->bf16 == 0 || p->bf16 == 1, "bf16 must be 0 or 1", "%d", p->bf16);
    REQUIRE(power_of_two(p->sram_banks) && p->sram_banks >= 4 && p->sram_banks <= 256,
            "sram_banks must be a power of two from 4 to 256", "%d", p->sram_banks);
    REQUIRE(p->dram_latency_cycles >= 0 && p->dram_latency_cycles <= 100000, "dram_latency_cycles must be 0 to 100000", "%d",
            p->dram_latency_cycles);
#undef REQUIRE
    return MERA_OK;
}
