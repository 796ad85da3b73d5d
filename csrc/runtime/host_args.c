/* host_args.c: what operators ask of their arguments, with the messages they fail with. */
#include "ops/ops.h"

bool arg_given(const host_planner *p, int32_t index) { return p->step->args[index].kind != MERA_HOST_NONE; }
int64_t arg_int(const host_planner *p, int32_t index) { return p->step->args[index].integer; }
bool arg_flag(const host_planner *p, int32_t index) { return p->step->args[index].integer != 0; }

double arg_real(const host_planner *p, int32_t index)
{
    const host_arg *a = &p->step->args[index];
    return a->kind == MERA_HOST_REAL ? a->real : (double)a->integer;
}

const char *arg_text(const host_planner *p, int32_t index) { return arg_given(p, index) ? p->step->args[index].text : ""; }

int32_t arg_count(const host_planner *p, int32_t index)
{
    return arg_given(p, index) ? (int32_t)p->step->args[index].integer : 0;
}

int64_t arg_item(const host_planner *p, int32_t index, int32_t item) { return p->step->args[index].items[item].integer; }

host_dtype arg_dtype(const host_planner *p, int32_t index, host_dtype otherwise)
{
    return arg_given(p, index) ? (host_dtype)p->step->args[index].integer : otherwise;
}

static mera_status about(host_planner *p, mera_status status, int32_t index, const char *what)
{
    char name[32];
    host_parameter_name(p->op, index, name, sizeof name);
    return host_refuse(p, status, "argument %s %s", name, what);
}

mera_status arg_tensor(host_planner *p, int32_t index, const host_tensor **tensor)
{
    const host_arg *a = &p->step->args[index];
    if (a->kind != MERA_HOST_TENSOR) return about(p, MERA_UNSUPPORTED, index, "must be a tensor, and is none");
    *tensor = &p->tensors[a->integer];
    return MERA_OK;
}

mera_status arg_tensor_or_none(host_planner *p, int32_t index, const host_tensor **tensor)
{
    *tensor = NULL;
    return arg_given(p, index) ? arg_tensor(p, index, tensor) : MERA_OK;
}

int32_t arg_number(const host_planner *p, int32_t index) { return (int32_t)p->step->args[index].integer; }

mera_status check_dim(host_planner *p, int64_t value, int32_t rank, int32_t *dim)
{
    const int64_t n = rank > 0 ? rank : 1;
    if (value < -n || value >= n)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "dimension %lld is not one of %lld", (long long)value, (long long)n);
    *dim = (int32_t)(value < 0 ? value + n : value);
    return MERA_OK;
}

mera_status arg_dim(host_planner *p, int32_t index, int32_t rank, int32_t *dim)
{
    return check_dim(p, arg_int(p, index), rank, dim);
}

mera_status arg_dims(host_planner *p, int32_t index, int32_t rank, bool flags[HOST_MAX_RANK])
{
    const int32_t count = arg_count(p, index);
    for (int32_t d = 0; d < HOST_MAX_RANK; d++) flags[d] = count == 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t dim = 0;
        TRY(check_dim(p, arg_item(p, index, i), rank, &dim));
        if (flags[dim]) return about(p, MERA_INVALID_ARGUMENT, index, "names a dimension twice");
        flags[dim] = true;
    }
    return MERA_OK;
}

mera_status arg_values(host_planner *p, int32_t index, int32_t count, int64_t *values)
{
    const int32_t given = arg_count(p, index);
    if (given != count && given != 1) return about(p, MERA_INVALID_ARGUMENT, index, "has another number of values");
    for (int32_t i = 0; i < count; i++) values[i] = arg_item(p, index, given == 1 ? 0 : i);
    return MERA_OK;
}

mera_status need_rank(host_planner *p, const host_tensor *t, int32_t least, int32_t most, const char *what)
{
    if (t->rank >= least && t->rank <= most) return MERA_OK;
    return host_refuse(p, MERA_INVALID_ARGUMENT, "%s must have %d to %d dimensions, got %d", what, least, most, t->rank);
}

mera_status need_float(host_planner *p, const host_tensor *t, const char *what)
{
    if (t->dtype == MERA_HOST_FLOAT32 || t->dtype == MERA_HOST_FLOAT64) return MERA_OK;
    return host_refuse(p, MERA_UNSUPPORTED, "%s must be float32 or float64, not %s", what, host_dtype_name(t->dtype));
}
