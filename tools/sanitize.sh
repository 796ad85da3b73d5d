#!/bin/sh
# The C core under AddressSanitizer and UndefinedBehaviorSanitizer, fed with random graphs:
#   tools/sanitize.sh [short|long]     2,000 or 100,000 altered files; needs a C compiler and the installed package
# CC, PYTHON and BUILD (a folder for what is built) can be set.
set -eu
cd "$(dirname "$0")/.."
form=${1:-short}
build=${BUILD:-build/sanitize}
case $form in
short) runs=2000 graphs=16 allocations=2 ;;
long) runs=100000 graphs=64 allocations=10 ;;
*) echo "usage: tools/sanitize.sh [short|long]" >&2; exit 2 ;;
esac
mkdir -p "$build/graphs"
${CC:-cc} -std=c11 -O1 -g -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -Icsrc \
    -o "$build/torture" csrc/*.c csrc/ops/*.c csrc/tests/torture.c -lm
${PYTHON:-python} tests/random_graphs.py "$build/graphs" "$graphs"
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:max_allocation_size_mb=4096:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
"$build/torture" run "$build"/graphs/*.dna.txt
"$build/torture" allocations $(ls "$build"/graphs/small_*.dna.txt | head -n $allocations)
"$build/torture" fuzz 1 0 $runs "$build"/graphs/small_*.dna.txt
