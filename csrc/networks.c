/* networks.c: a graph may hold several networks that share nothing but inputs and constants. Which layer belongs to which,
 * in what orders their layers could run, and on which units. compile.c tries these arrangements and takes the fastest. */
#include "compile.h"

/* ---- which layer belongs to which network ---- */

static int32_t find(int32_t *parent, int32_t t)
{
    while (parent[t] != t) t = parent[t] = parent[parent[t]];
    return t;
}

mera_status find_networks(compiler *c)
{
    const size_t tensors = c->graph->tensors.count;
    int32_t *parent = ctx_alloc(c->ctx, (tensors + 1) * 2 * sizeof *parent);
    if (!parent) return out_of_memory(c->ctx);
    int32_t *number = parent + tensors + 1;
    for (size_t t = 0; t < tensors; t++) {
        parent[t] = (int32_t)t;
        number[t] = -1;
    }
    for (size_t i = 0; i < c->graph->nodes.count; i++) {
        const graph_node *n = node_at(c, (int32_t)i);
        for (int32_t k = 0; k < n->input_count; k++) {
            const graph_tensor *x = tensor_at(c, n->inputs[k]);
            if (!x->is_input && !x->data) parent[find(parent, n->inputs[k])] = find(parent, n->output);
        }
    }
    c->networks = 0;
    for (size_t i = 0; i < c->layers.count; i++) {
        layer *l = &c->layers.at[i];
        int32_t *mine = &number[find(parent, node_at(c, l->node)->output)];
        if (*mine < 0) *mine = c->networks++;
        l->network = *mine;
    }
    ctx_free(c->ctx, parent);
    return MERA_OK;
}

/* ---- what layers cost ---- */

void add_costs(const compiler *c, layer_cost *costs)
{
    const int64_t units = c->platform.units;
    int64_t busy[3] = {0};
    int32_t before = -1;
    for (size_t i = 0; i < c->jobs.count; i++) {
        const job *j = &c->jobs.at[i];
        layer_cost *cost = &costs[c->layers.at[j->layer].index];
        const int64_t cycles = instr_cycles(&j->i, &c->platform);
        if (j->i.queue < QUEUE_UNITS) {
            cost->dram += cycles;
            continue;
        }
        if (j->layer != before) memset(busy, 0, sizeof busy); /* a layer's jobs on units follow each other */
        before = j->layer;
        int64_t *sum = &busy[(j->i.queue - QUEUE_UNITS) % UNIT_QUEUES];
        *sum += cycles;
        cost->units = max_i64(cost->units, ceil_div(*sum, units));
        if (j->i.opcode == DNA_OP_CONV) cost->arrays = max_i64(cost->arrays, *sum / units);
    }
}

int64_t floor_of(const compiler *c, const layer_cost *costs)
{
    int64_t dram = 0, arrays = 0;
    for (size_t i = 0; i < c->layers.count; i++) {
        dram += costs[i].dram;
        arrays += costs[i].arrays;
    }
    return max_i64(dram, arrays);
}

/* ---- orders ---- */

typedef struct progress {
    const int32_t *layers; /* of one network, in order */
    int32_t count, at;
    layer_cost total, done;
} progress;

/* How far a network has come when `l` has run, in its own terms of the rule, 0 to 1. */
static double share(const progress *p, const layer_cost *l, order_rule rule)
{
    const double dram = (double)(p->done.dram + l->dram), units = (double)(p->done.units + l->units);
    const double all_dram = (double)p->total.dram + 1, all_units = (double)p->total.units + 1;
    switch (rule) {
    case ORDER_BY_DRAM:
        return dram / all_dram;
    case ORDER_BY_UNITS:
        return units / all_units;
    default:
        return (dram + units) / (all_dram + all_units);
    }
}

/* The network whose next layer runs next. */
static int32_t choose(const progress *p, int32_t networks, const layer_cost *costs, order_rule rule,
                      const layer_cost *so_far, const layer_cost *all)
{
    int32_t best = -1;
    double least = 0;
    /* Balanced: where DRAM has been asked for more than its share, the layer with the least traffic for its work. */
    const double ahead = (double)so_far->dram * (double)(all->units + 1) - (double)so_far->units * (double)(all->dram + 1);
    for (int32_t n = 0; n < networks; n++) {
        if (p[n].at == p[n].count) continue;
        const layer_cost *l = &costs[p[n].layers[p[n].at]];
        const double lean = (double)(l->dram + 1) / (double)(l->dram + l->units + 2);
        const double value = rule == ORDER_BALANCED ? (ahead > 0 ? lean : -lean) : share(&p[n], l, rule);
        if (best >= 0 && value >= least) continue;
        best = n;
        least = value;
    }
    return best;
}

static void interleave(progress *p, int32_t networks, const layer_cost *costs, order_rule rule, int32_t *order)
{
    layer_cost all = {0}, so_far = {0};
    for (int32_t n = 0; n < networks; n++) {
        all.dram += p[n].total.dram;
        all.units += p[n].total.units;
    }
    for (int32_t n; (n = choose(p, networks, costs, rule, &so_far, &all)) >= 0;) {
        const layer_cost *l = &costs[p[n].layers[p[n].at]];
        p[n].done.dram += l->dram;
        p[n].done.units += l->units;
        so_far.dram += l->dram;
        so_far.units += l->units;
        *order++ = p[n].layers[p[n].at++];
    }
}

/* One network after the other: as given, the other way round, or by how much of their time is DRAM's. */
static void one_by_one(const progress *p, int32_t networks, order_rule rule, int32_t *order)
{
    for (int32_t n = 0; n < networks; n++) {
        int32_t at = 0; /* layers of the networks in front */
        for (int32_t m = 0; m < networks; m++) {
            const double mine = (double)p[n].total.dram * (double)(p[m].total.units + 1);
            const double other = (double)p[m].total.dram * (double)(p[n].total.units + 1);
            const bool leaner = other < mine || (other == mine && m < n);
            const bool in_front = rule == ORDER_LEAN_FIRST ? leaner : rule == ORDER_REVERSED ? m > n : m < n;
            if (in_front && m != n) at += p[m].count;
        }
        memcpy(order + at, p[n].layers, sizeof *order * (size_t)p[n].count);
    }
}

/* ---- units ---- */

/* Networks side by side: each has units of its own, as many as its share of the work. */
static void divide_units(compiler *c, const progress *p)
{
    int32_t shares[MAX_UNITS], left = c->platform.units - c->networks;
    for (int32_t n = 0; n < c->networks; n++) shares[n] = 1;
    for (; left > 0; left--) { /* the next unit to the network that has most work for each of its own */
        int32_t most = 0;
        for (int32_t n = 1; n < c->networks; n++)
            if (p[n].total.units * shares[most] > p[most].total.units * shares[n]) most = n;
        shares[most]++;
    }
    for (size_t i = 0; i < c->layers.count; i++) {
        layer *l = &c->layers.at[i];
        l->units = shares[l->network];
        for (int32_t n = 0; n < l->network; n++) l->first_unit += shares[n];
    }
}

/* ---- arrangements ---- */

/* What the networks do, from what their layers cost. */
static progress *networks_of(compiler *c, const layer_cost *costs)
{
    const int32_t count = (int32_t)c->layers.count;
    progress *p = arena_array(&c->memory, (size_t)c->networks + 1, sizeof *p);
    int32_t *by_network = arena_array(&c->memory, (size_t)count + 1, sizeof *by_network);
    int32_t at = 0;
    for (int32_t n = 0; p && by_network && n < c->networks; n++) {
        p[n].layers = by_network + at;
        for (int32_t i = 0; i < count; i++) {
            if (c->layers.at[i].network != n) continue;
            by_network[at++] = i;
            p[n].count++;
            p[n].total.dram += costs[i].dram;
            p[n].total.units += costs[i].units;
        }
    }
    return by_network ? p : NULL;
}

mera_status list_orders(compiler *c, const layer_cost *costs, int32_t *orders[ORDER_COUNT])
{
    const size_t bytes = c->layers.count * sizeof *orders[0];
    for (int rule = 0; rule < ORDER_COUNT; rule++) {
        progress *p = networks_of(c, costs);
        int32_t *order = orders[rule] = arena_array(&c->memory, c->layers.count + 1, sizeof *order);
        if (!p || !order) return out_of_memory(c->ctx);
        if (rule == ORDER_AS_GIVEN)
            for (size_t i = 0; i < c->layers.count; i++) order[i] = (int32_t)i;
        else if (rule <= ORDER_LEAN_FIRST)
            one_by_one(p, c->networks, (order_rule)rule, order);
        else
            interleave(p, c->networks, costs, (order_rule)rule, order);
        for (int before = 0; before < rule && orders[rule]; before++)
            if (orders[before] && !memcmp(orders[before], order, bytes)) orders[rule] = NULL;
    }
    return MERA_OK;
}

mera_status arrange(compiler *c, const layer_cost *costs, const arrangement *a)
{
    const size_t count = c->layers.count;
    layer *sorted = arena_array(&c->memory, count + 1, sizeof *sorted);
    const progress *p = networks_of(c, costs);
    if (!sorted || !p) return out_of_memory(c->ctx);
    if (a->units == UNITS_DIVIDED) divide_units(c, p);
    c->economical = a->units == UNITS_ECONOMICAL;
    c->in_turn = a->units == UNITS_IN_TURN;
    for (size_t i = 0; i < count; i++) sorted[i] = c->layers.at[a->order[i]];
    memcpy(c->layers.at, sorted, count * sizeof *sorted);
    live_ranges(c);
    return MERA_OK;
}

/* ---- networks in turn ---- */

void keep_network(compiler *c, int32_t network, bool last)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->layers.count; i++) {
        layer *l = &c->layers.at[i];
        if (l->network == network)
            c->layers.at[kept++] = *l;
        else
            vec_free(c->ctx, &l->pieces);
    }
    c->layers.count = kept;
    for (size_t r = 0; r < c->roots.count; r++) { /* inputs that are outputs are copied once */
        root *x = &c->roots.at[r];
        if (x->is_input || x->constant) x->is_output = x->is_output && last;
    }
    live_ranges(c);
}

/* The DRAM regions that all networks share: constants, inputs and outputs. */
static mera_status shared_regions(compiler *c, const compiler *one, size_t count)
{
    c->input_buffer = arena_array(&c->memory, c->graph->inputs.count + 1, sizeof *c->input_buffer);
    c->output_buffer = arena_array(&c->memory, c->graph->outputs.count + 1, sizeof *c->output_buffer);
    if (!c->input_buffer || !c->output_buffer) return out_of_memory(c->ctx);
    memcpy(c->input_buffer, one->input_buffer, c->graph->inputs.count * sizeof *c->input_buffer);
    memcpy(c->output_buffer, one->output_buffer, c->graph->outputs.count * sizeof *c->output_buffer);
    for (size_t b = 0; b < count; b++) {
        buffer x = one->buffers.at[b];
        x.address = -1;
        if (!vec_push(c->ctx, &c->buffers, x)) return out_of_memory(c->ctx);
    }
    return MERA_OK;
}

mera_status add_network(compiler *c, const compiler *one)
{
    const size_t shared = 1 + c->graph->inputs.count + c->graph->outputs.count;
    if (c->buffers.count == 0) TRY(shared_regions(c, one, shared));
    int64_t base;
    TRY(add_constant(c, one->constants.at, (int64_t)one->constants.count, &base));
    const size_t more = c->buffers.count - shared;
    for (size_t b = shared; b < one->buffers.count; b++) {
        buffer x = one->buffers.at[b];
        const bool constant = x.kind == BUFFER_DRAM && x.address < one->buffers.at[0].bytes;
        x.load = -1;
        if (x.kind == BUFFER_DRAM) x.address = constant ? x.address + base : -1;
        if (!vec_push(c->ctx, &c->buffers, x)) return out_of_memory(c->ctx);
    }
    c->buffers.at[0].bytes = (int64_t)c->constants.count;
    int32_t *layer_at = ctx_alloc(c->ctx, (c->layers.count + 1) * sizeof *layer_at);
    if (!layer_at) return out_of_memory(c->ctx);
    for (size_t i = 0; i < c->layers.count; i++) layer_at[c->layers.at[i].index] = (int32_t)i;
    bool ok = true;
    for (size_t i = 0; i < one->jobs.count && ok; i++) {
        job j = one->jobs.at[i];
        j.position = (int64_t)c->jobs.count;
        j.layer = layer_at[one->layers.at[j.layer].index];
        for (int k = 0; k < j.fix_count; k++)
            if (j.fix[k].buffer == 0)
                j.i.f[j.fix[k].field] += base;
            else if (j.fix[k].buffer >= (int32_t)shared)
                j.fix[k].buffer += (int32_t)more;
        ok = vec_push(c->ctx, &c->jobs, j);
    }
    ctx_free(c->ctx, layer_at);
    return ok ? MERA_OK : out_of_memory(c->ctx);
}
