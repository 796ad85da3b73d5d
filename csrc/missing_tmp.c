/* missing_tmp.c: temporary weak stand-ins for what is being written. */
#include "core.h"
#define WEAK __attribute__((weak))
#pragma GCC diagnostic ignored "-Wunused-parameter"
WEAK mera_status mera_graph_print(mera_graph *graph, int32_t with_data, char **text)
{ return fail(*(mera_context *const *)(const void *)graph, MERA_UNSUPPORTED, "mera_graph_print is not in this build yet"); }
WEAK mera_status mera_graph_parse(mera_context *ctx, const char *text, size_t bytes, mera_graph **graph)
{ return fail(ctx, MERA_UNSUPPORTED, "mera_graph_parse is not in this build yet"); }
WEAK mera_status mera_graph_save(mera_graph *graph, const uint8_t **data, size_t *bytes)
{ return fail(*(mera_context *const *)(const void *)graph, MERA_UNSUPPORTED, "mera_graph_save is not in this build yet"); }
WEAK mera_status mera_graph_load(mera_context *ctx, const uint8_t *data, size_t bytes, mera_graph **graph)
{ return fail(ctx, MERA_UNSUPPORTED, "mera_graph_load is not in this build yet"); }
WEAK mera_status mera_compile(mera_graph *graph, const mera_platform *platform, const mera_options *options,
                         mera_progress progress, void *user, mera_program **program)
{ return fail(*(mera_context *const *)(const void *)graph, MERA_UNSUPPORTED, "mera_compile is not in this build yet"); }
WEAK mera_status mera_compile_dump(mera_graph *graph, const mera_platform *platform, const mera_options *options,
                              const char *stage, char **text)
{ return fail(*(mera_context *const *)(const void *)graph, MERA_UNSUPPORTED, "mera_compile_dump is not in this build yet"); }
WEAK void mera_program_destroy(mera_program *program)
{ }
WEAK mera_status mera_program_save(mera_program *program, const uint8_t **data, size_t *bytes)
{ return fail(*(mera_context *const *)(const void *)program, MERA_UNSUPPORTED, "mera_program_save is not in this build yet"); }
WEAK mera_status mera_program_load(mera_context *ctx, const uint8_t *data, size_t bytes, mera_program **program)
{ return fail(ctx, MERA_UNSUPPORTED, "mera_program_load is not in this build yet"); }
WEAK mera_status mera_program_print(mera_program *program, char **text)
{ return fail(*(mera_context *const *)(const void *)program, MERA_UNSUPPORTED, "mera_program_print is not in this build yet"); }
WEAK mera_status mera_program_parse(mera_context *ctx, const char *text, size_t bytes, mera_program **program)
{ return fail(ctx, MERA_UNSUPPORTED, "mera_program_parse is not in this build yet"); }
WEAK void mera_program_platform(const mera_program *program, mera_platform *platform)
{ }
WEAK int64_t mera_program_instruction_count(const mera_program *program)
{ return 0; }
WEAK int64_t mera_program_constant_bytes(const mera_program *program)
{ return 0; }
WEAK int64_t mera_program_sram_peak_bytes(const mera_program *program)
{ return 0; }
WEAK int32_t mera_program_input_count(const mera_program *program)
{ return 0; }
WEAK int32_t mera_program_output_count(const mera_program *program)
{ return 0; }
WEAK int64_t mera_program_input_bytes(const mera_program *program, int32_t index)
{ return 0; }
WEAK int64_t mera_program_output_bytes(const mera_program *program, int32_t index)
{ return 0; }
WEAK mera_status mera_simulator_create(mera_program *program, mera_simulator **simulator)
{ return fail(*(mera_context *const *)(const void *)program, MERA_UNSUPPORTED, "mera_simulator_create is not in this build yet"); }
WEAK void mera_simulator_destroy(mera_simulator *simulator)
{ }
WEAK mera_status mera_simulator_run(mera_simulator *simulator, int32_t input_count, const void *const *inputs,
                               const int64_t *input_bytes, int32_t output_count, void *const *outputs,
                               const int64_t *output_bytes)
{ return fail(*(mera_context *const *)(const void *)simulator, MERA_UNSUPPORTED, "mera_simulator_run is not in this build yet"); }
WEAK mera_status mera_simulator_stats(mera_simulator *simulator, mera_stats *stats)
{ return fail(*(mera_context *const *)(const void *)simulator, MERA_UNSUPPORTED, "mera_simulator_stats is not in this build yet"); }
WEAK mera_status mera_simulator_layers(mera_simulator *simulator, const mera_layer_stats **layers, int64_t *count)
{ return fail(*(mera_context *const *)(const void *)simulator, MERA_UNSUPPORTED, "mera_simulator_layers is not in this build yet"); }
WEAK mera_status mera_simulator_events(mera_simulator *simulator, const mera_event **events, int64_t *count)
{ return fail(*(mera_context *const *)(const void *)simulator, MERA_UNSUPPORTED, "mera_simulator_events is not in this build yet"); }
WEAK int32_t mera_program_node_count(const mera_program *program)
{ return 0; }
WEAK const char *mera_program_node_name(const mera_program *program, int32_t node)
{ return ""; }
WEAK const char *mera_program_node_op(const mera_program *program, int32_t node)
{ return ""; }
WEAK const char *mera_program_node_layer(const mera_program *program, int32_t node)
{ return ""; }
WEAK const char *mera_program_node_source(const mera_program *program, int32_t node)
{ return ""; }
WEAK int32_t mera_program_queue_count(const mera_program *program)
{ return 0; }
WEAK const char *mera_program_queue_name(const mera_program *program, int32_t queue)
{ return ""; }
