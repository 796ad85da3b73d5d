/* discover.c: which boards there are, and what each says of itself. */
#include <stdio.h>

#include "device.h"

#define MAX_DEVICE_MEMORY ((uint64_t)1 << 44)

static const device_options no_options = {0};

/* ---- identification ---- */

static mera_status nonsense(mera_context *ctx, const transport *t, const char *what, uint64_t value)
{
    return fail(ctx, MERA_DEVICE_FAULT, "device %s identifies itself with nonsense: %s is 0x%llx", t->address, what,
                (unsigned long long)value);
}

static bool power_of_two(uint64_t x) { return x > 0 && (x & (x - 1)) == 0; }

static mera_status identify_platform(mera_context *ctx, const transport *t, mera_platform *p)
{
    for (uint32_t k = 0; k < REG_NAME_WORDS; k++) {
        const uint32_t word = transport_read(t, REG_NAME + 4 * k);
        for (uint32_t b = 0; b < 4; b++) p->name[4 * k + b] = (char)(word >> (8 * b));
    }
    p->name[sizeof p->name - 1] = '\0';
    for (const char *c = p->name; *c; c++)
        if (*c < ' ' || *c > '~') return nonsense(ctx, t, "a character of NAME", (uint8_t)*c);
    p->units = (int32_t)transport_read(t, REG_UNITS);
    p->array = (int32_t)transport_read(t, REG_ARRAY);
    p->clock_mhz = (double)transport_read64(t, REG_CLOCK_LO) / 1e6;
    p->sram_bytes = (int64_t)transport_read(t, REG_SRAM_BYTES);
    p->dram_gbps = (double)transport_read64(t, REG_BANDWIDTH_LO) / 1e9;
    p->bf16 = (transport_read(t, REG_FEATURES) & REG_FEATURES_BF16) != 0;
    p->sram_banks = (int32_t)transport_read(t, REG_SRAM_BANKS);
    p->dram_latency_cycles = (int32_t)transport_read(t, REG_DRAM_LATENCY);
    if (mera_platform_check(ctx, p) == MERA_OK) return MERA_OK;
    char why[256];
    snprintf(why, sizeof why, "%s", mera_last_error(ctx));
    return fail(ctx, MERA_DEVICE_FAULT, "device %s identifies itself with nonsense: %s", t->address, why);
}

mera_status device_identify(mera_context *ctx, const transport *t, device_info *info)
{
    const uint32_t magic = transport_read(t, REG_MAGIC), version = transport_read(t, REG_VERSION);
    const uint32_t depth = transport_read(t, REG_QUEUE_DEPTH), slots = transport_read(t, REG_SLOTS);
    const uint64_t memory = transport_read64(t, REG_MEMORY_LO);
    if (magic != DNA_ID_MAGIC) return nonsense(ctx, t, "MAGIC", magic);
    if (version >> REG_VERSION_MAJOR_SHIFT != DNA_ID_VERSION_MAJOR)
        return fail(ctx, MERA_DEVICE_FAULT, "device %s has version %u.%u of the register map, this driver knows version %d",
                    t->address, (unsigned)(version >> 16), (unsigned)(version & 0xffff), DNA_ID_VERSION_MAJOR);
    if (!power_of_two(depth) || depth < DNA_ID_RING_MIN || depth > DNA_ID_RING_MAX)
        return nonsense(ctx, t, "QUEUE_DEPTH", depth);
    if (slots < 1 || slots > MAX_SLOTS) return nonsense(ctx, t, "SLOTS", slots);
    if (memory < DNA_ID_PROGRAM_ALIGN || memory > MAX_DEVICE_MEMORY) return nonsense(ctx, t, "MEMORY", memory);
    TRY(identify_platform(ctx, t, &info->platform));
    const uint32_t identity = transport_read(t, REG_IDENTITY);
    snprintf(info->address, sizeof info->address, "%s", t->address);
    info->vendor_id = t->vendor_id ? t->vendor_id : identity & 0xffff;
    info->device_id = t->device_id ? t->device_id : identity >> REG_IDENTITY_DEVICE_SHIFT;
    info->version = version;
    info->memory_bytes = info->memory_free = (int64_t)memory;
    info->dma_bytes = t->dma_bytes;
    info->slots = (int32_t)slots;
    info->ring = (int32_t)depth;
    info->interrupts = t->interrupts && (transport_read(t, REG_FEATURES) & REG_FEATURES_INTERRUPTS);
    return MERA_OK;
}

/* ---- list ---- */

static void json_text(text *t, const char *name, const char *value)
{
    text_add(t, "\"%s\": \"", name);
    for (const char *c = value; *c; c++) text_add(t, *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
    text_add(t, "\"");
}

static void json_platform(text *t, const mera_platform *p)
{
    text_add(t, "{");
    json_text(t, "name", p->name);
    text_add(t,
             ", \"units\": %d, \"array\": %d, \"clock_mhz\": %.17g, \"sram_bytes\": %lld, \"dram_gbps\": %.17g, "
             "\"bf16\": %s, \"sram_banks\": %d, \"dram_latency_cycles\": %d}",
             p->units, p->array, p->clock_mhz, (long long)p->sram_bytes, p->dram_gbps, p->bf16 ? "true" : "false",
             p->sram_banks, p->dram_latency_cycles);
}

static mera_status describe(mera_context *ctx, const device_options *options, const char *address, text *out)
{
    transport *t = NULL;
    device_info info = {0};
    pid_t holder = 0;
    const mera_status opened = transport_open(ctx, options, address, false, &t);
    if (opened == MERA_OUT_OF_MEMORY) return opened;
    if (opened == MERA_DEVICE_ABSENT) return MERA_OK; /* it went away meanwhile */
    const bool busy = opened == MERA_OK && transport_busy(t, &holder);
    const bool known = opened == MERA_OK && device_identify(ctx, t, &info) == MERA_OK;
    text_add(out, "%s{", out->count > 1 ? ", " : "");
    json_text(out, "address", address);
    text_add(out, ", \"transport\": \"%.*s\", ", (int)(strchr(address, ':') - address), address);
    json_text(out, "state", !known ? "unidentified" : busy ? "busy" : "free");
    if (holder)
        text_add(out, ", \"holder\": %ld", (long)holder);
    else
        text_add(out, ", \"holder\": null");
    text_add(out, ", \"vendor\": %u, \"device\": %u, \"memory_bytes\": %lld, \"platform\": ", (unsigned)info.vendor_id,
             (unsigned)info.device_id, (long long)info.memory_bytes);
    if (known) {
        json_platform(out, &info.platform);
        text_add(out, ", \"error\": null}");
    } else {
        text_add(out, "null, ");
        json_text(out, "error", mera_last_error(ctx));
        text_add(out, "}");
    }
    transport_close(ctx, t);
    return MERA_OK;
}

mera_status device_list(mera_context *ctx, const device_options *options, char **json)
{
    if (!options) options = &no_options;
    address_vec found = {0};
    text out;
    text_init(&out, ctx);
    text_add(&out, "[");
    mera_status status = transport_list(ctx, options, &found);
    for (size_t k = 0; k < found.count && status == MERA_OK; k++) status = describe(ctx, options, found.at[k], &out);
    text_add(&out, "]");
    address_vec_free(ctx, &found);
    if (status == MERA_OK) return text_finish(&out, json);
    text_drop(&out);
    return status;
}
