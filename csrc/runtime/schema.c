/* schema.c: a call's arguments against an operator's schema: positions, names, defaults, types. */
#include <stdlib.h>

#include "ops/ops.h"

/* One parameter of a schema, as slices of its text. */
typedef struct parameter {
    const char *type, *name, *initial; /* initial: NULL if there is no default */
    size_t type_length, name_length, initial_length;
    bool keyword_only;
} parameter;

/* Reads the parameter at *at and moves *at behind it; false at the end. */
static bool next_parameter(const char **at, bool *keyword_only, parameter *found)
{
    const char *s = *at;
    if (strncmp(s, "*, ", 3) == 0) {
        *keyword_only = true;
        s += 3;
    }
    if (*s == 0) return false;
    *found = (parameter){.type = s, .keyword_only = *keyword_only};
    while (*s && *s != ' ') s++;
    found->type_length = (size_t)(s - found->type);
    found->name = *s ? ++s : s;
    while (*s && *s != '=' && *s != ',') s++;
    found->name_length = (size_t)(s - found->name);
    if (*s == '=') {
        found->initial = ++s;
        for (int depth = 0; *s && (depth > 0 || *s != ','); s++) depth += (*s == '[') - (*s == ']');
        found->initial_length = (size_t)(s - found->initial);
    }
    *at = strncmp(s, ", ", 2) == 0 ? s + 2 : s;
    return true;
}

static bool is_text(const char *at, size_t length, const char *text)
{
    return strlen(text) == length && memcmp(at, text, length) == 0;
}

void host_parameter_name(const host_op *op, int32_t index, char *name, size_t space)
{
    const char *at = op->schema;
    bool keyword_only = false;
    parameter found = {0};
    for (int32_t i = 0; i <= index; i++)
        if (!next_parameter(&at, &keyword_only, &found)) break;
    const size_t length = found.name_length < space ? found.name_length : space - 1;
    if (length > 0) memcpy(name, found.name, length);
    name[length] = 0;
}

/* ---- types ---- */

/* "SymInt[2]?" is {base "Int", list, sized 2, optional}. */
typedef struct type_form {
    char base[20];
    bool list, optional, optional_items;
    int32_t size; /* 0: any */
} type_form;

static type_form form_of(const parameter *param)
{
    type_form form = {.list = false};
    const char *s = param->type, *end = s + param->type_length;
    size_t n = 0;
    while (s < end && *s != '[' && *s != '?' && n + 1 < sizeof form.base) form.base[n++] = *s++;
    if (strcmp(form.base, "SymInt") == 0) strcpy(form.base, "int");
    if (s < end && *s == '?') {
        form.optional = true;
        s++;
    }
    if (s < end && *s == '[') {
        form.list = true;
        form.optional_items = form.optional;
        form.optional = false;
        form.size = (int32_t)strtol(s + 1, NULL, 10);
        while (s < end && *s != ']') s++;
        form.optional = s + 1 < end && s[1] == '?';
    }
    return form;
}

static bool is_number(const host_arg *a)
{
    return a->kind == MERA_HOST_INT || a->kind == MERA_HOST_REAL || a->kind == MERA_HOST_FLAG;
}

/* Whether `a` is of the base type; floats and dtypes are brought into their form. */
static bool fits(const char *base, host_arg *a)
{
    host_dtype dtype;
    if (strcmp(base, "Tensor") == 0) return a->kind == MERA_HOST_TENSOR || is_number(a);
    if (strcmp(base, "Scalar") == 0) return is_number(a);
    if (strcmp(base, "bool") == 0) return a->kind == MERA_HOST_FLAG;
    if (strcmp(base, "str") == 0) return a->kind == MERA_HOST_STRING;
    if (strcmp(base, "int") == 0) return a->kind == MERA_HOST_INT;
    if (strcmp(base, "float") == 0) {
        if (a->kind == MERA_HOST_INT) a->real = (double)a->integer;
        const bool good = a->kind == MERA_HOST_INT || a->kind == MERA_HOST_REAL;
        if (good) a->kind = MERA_HOST_REAL;
        return good;
    }
    if (strcmp(base, "ScalarType") == 0) {
        if (a->kind != MERA_HOST_NAME || !host_dtype_find(a->text, &dtype)) return false;
        a->integer = (int64_t)dtype;
        return true;
    }
    if (strcmp(base, "Layout") == 0) return a->kind == MERA_HOST_NAME && strcmp(a->text, "strided") == 0;
    if (strcmp(base, "MemoryFormat") == 0) return a->kind == MERA_HOST_NAME;
    if (strcmp(base, "Device") == 0)
        return (a->kind == MERA_HOST_DEVICE || a->kind == MERA_HOST_STRING) && strncmp(a->text, "cpu", 3) == 0;
    return false;
}

static mera_status wrong_type(host_planner *p, const parameter *param)
{
    return host_refuse(p, MERA_UNSUPPORTED, "argument %.*s must be %.*s, and something else was given",
                       (int)param->name_length, param->name, (int)param->type_length, param->type);
}

static mera_status check_list(host_planner *p, const parameter *param, const type_form *form, host_arg *a)
{
    const bool single = a->kind != MERA_HOST_LIST;
    if (single && form->size == 0) return wrong_type(p, param);
    const int64_t count = single ? form->size : a->integer;
    host_arg *items = arena_array(p->memory, (size_t)count + 1, sizeof *items);
    if (items == NULL) return out_of_memory(p->ctx);
    for (int64_t i = 0; i < count; i++) {
        items[i] = single ? *a : a->items[i];
        if (items[i].kind == MERA_HOST_NONE ? !form->optional_items : !fits(form->base, &items[i]))
            return wrong_type(p, param);
    }
    *a = (host_arg){.kind = MERA_HOST_LIST, .integer = count, .items = items};
    return MERA_OK;
}

static mera_status check_type(host_planner *p, const parameter *param, host_arg *a)
{
    const type_form form = form_of(param);
    if (a->kind == MERA_HOST_NONE) return form.optional ? MERA_OK : wrong_type(p, param);
    if (strcmp(form.base, "Any") == 0) return MERA_OK;
    if (form.list) return check_list(p, param, &form, a);
    return fits(form.base, a) ? MERA_OK : wrong_type(p, param);
}

/* ---- defaults ---- */

/* A decimal of at most 15 digits and a small exponent: correctly rounded, in any locale. */
static double decimal(const char *s, const char *end)
{
    double digits = 0, power = 1;
    long exponent = 0;
    bool negative = *s == '-', fraction = false;
    for (s += negative; s < end && *s != 'e'; s++) {
        if (*s == '.')
            fraction = true;
        else
            digits = digits * 10 + (*s - '0'), exponent -= fraction;
    }
    if (s < end) exponent += strtol(s + 1, NULL, 10);
    for (long i = 0; i < labs(exponent); i++) power *= 10;
    const double value = exponent < 0 ? digits / power : digits * power;
    return negative ? -value : value;
}

/* "[1, 1]" */
static mera_status default_list(host_planner *p, const char *s, size_t n, host_arg *a)
{
    host_arg *items = arena_array(p->memory, n, sizeof *items);
    if (items == NULL) return out_of_memory(p->ctx);
    int64_t count = 0;
    for (const char *at = s + 1; at < s + n - 1; count++) {
        char *end;
        items[count] = (host_arg){.kind = MERA_HOST_INT, .integer = strtoll(at, &end, 10)};
        at = end + (*end == ',') + (end[0] == ',' && end[1] == ' ');
    }
    *a = (host_arg){.kind = MERA_HOST_LIST, .integer = count, .items = items};
    return MERA_OK;
}

/* A default of a schema: None, True, False, a number, "text", a list of integers, or a name. The table is ours: it has no
 * other forms. */
static mera_status default_of(host_planner *p, const parameter *param, host_arg *a)
{
    const char *s = param->initial;
    const size_t n = param->initial_length;
    *a = (host_arg){.kind = MERA_HOST_NONE};
    if (is_text(s, n, "None")) return MERA_OK;
    if (is_text(s, n, "True") || is_text(s, n, "False")) {
        *a = (host_arg){.kind = MERA_HOST_FLAG, .integer = *s == 'T'};
    } else if (*s == '[') {
        return default_list(p, s, n, a);
    } else if ((*s >= '0' && *s <= '9') || *s == '-') {
        char *end;
        a->kind = MERA_HOST_INT;
        a->integer = strtoll(s, &end, 10);
        if (end != s + n) *a = (host_arg){.kind = MERA_HOST_REAL, .real = decimal(s, s + n)};
    } else {
        const bool quoted = *s == '"';
        char *text = arena_array(p->memory, n + 1, 1);
        if (text == NULL) return out_of_memory(p->ctx);
        memcpy(text, s + quoted, n - 2 * (size_t)quoted);
        *a = (host_arg){.kind = quoted ? MERA_HOST_STRING : MERA_HOST_NAME, .text = text};
    }
    return MERA_OK;
}

/* ---- values that lie in memory of the caller ---- */

static mera_status copy_arg(host_planner *p, const host_arg *from, int32_t tensor_count, int depth, host_arg *to)
{
    *to = *from;
    if (from->kind == MERA_HOST_TENSOR && (from->integer < 0 || from->integer >= tensor_count))
        return host_refuse(p, MERA_INVALID_ARGUMENT, "there is no tensor %lld", (long long)from->integer);
    if (from->kind == MERA_HOST_STRING || from->kind == MERA_HOST_NAME || from->kind == MERA_HOST_DEVICE) {
        to->text = arena_string(p->memory, from->text);
        if (to->text == NULL) return out_of_memory(p->ctx);
    }
    if (from->kind != MERA_HOST_LIST) return MERA_OK;
    if (depth == 0 || from->integer < 0 || from->integer > INT32_MAX)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "a list is too long or too deep");
    host_arg *items = arena_array(p->memory, (size_t)from->integer + 1, sizeof *items);
    if (items == NULL) return out_of_memory(p->ctx);
    for (int64_t i = 0; i < from->integer; i++) TRY(copy_arg(p, &from->items[i], tensor_count, depth - 1, &items[i]));
    to->items = items;
    return MERA_OK;
}

/* ---- binding ---- */

static const host_arg *keyword(const host_call *call, const parameter *param)
{
    for (int32_t i = 0; i < call->kwarg_count; i++)
        if (is_text(param->name, param->name_length, call->kwarg_names[i])) return &call->kwargs[i];
    return NULL;
}

static mera_status check_keywords(host_planner *p, const host_call *call)
{
    for (int32_t i = 0; i < call->kwarg_count; i++) {
        const char *at = p->op->schema;
        bool keyword_only = false, known = false;
        parameter param;
        while (!known && next_parameter(&at, &keyword_only, &param))
            known = is_text(param.name, param.name_length, call->kwarg_names[i]);
        if (!known) return host_refuse(p, MERA_UNSUPPORTED, "there is no argument %s", call->kwarg_names[i]);
    }
    return MERA_OK;
}

static int32_t parameter_count(const host_op *op)
{
    const char *at = op->schema;
    bool keyword_only = false;
    parameter param;
    int32_t count = 0;
    while (next_parameter(&at, &keyword_only, &param)) count++;
    return count;
}

mera_status host_bind(host_planner *p, const host_call *call, int32_t tensor_count)
{
    const int32_t count = parameter_count(p->op);
    host_arg *args = arena_array(p->memory, (size_t)count + 1, sizeof *args);
    if (args == NULL) return out_of_memory(p->ctx);
    TRY(check_keywords(p, call));
    const char *at = p->op->schema;
    bool keyword_only = false;
    parameter param;
    int32_t positional = 0;
    for (int32_t i = 0; next_parameter(&at, &keyword_only, &param); i++) {
        positional += !param.keyword_only;
        const host_arg *named = keyword(call, &param);
        const bool placed = !param.keyword_only && i < call->arg_count;
        if (placed && named != NULL)
            return host_refuse(p, MERA_INVALID_ARGUMENT, "argument %.*s is given twice", (int)param.name_length, param.name);
        if (placed || named != NULL)
            TRY(copy_arg(p, placed ? &call->args[i] : named, tensor_count, 8, &args[i]));
        else if (param.initial != NULL)
            TRY(default_of(p, &param, &args[i]));
        else
            return host_refuse(p, MERA_INVALID_ARGUMENT, "argument %.*s is missing", (int)param.name_length, param.name);
        TRY(check_type(p, &param, &args[i]));
    }
    if (call->arg_count > positional)
        return host_refuse(p, MERA_INVALID_ARGUMENT, "it takes %d arguments by position, got %d", positional,
                           call->arg_count);
    p->step->args = args;
    p->step->arg_count = count;
    return MERA_OK;
}
