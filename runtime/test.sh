#!/bin/sh
# All that must hold of the C runtime:
#   runtime/test.sh [headers|native|install|device|sanitize|cross]...      default: all of them
# PYTHON (with mera_torch[full] installed), CC, CXX and BUILD (a folder for what is built) can be set. Needs cmake, a C and a
# C++ compiler, pkg-config; cross: gcc-aarch64-linux-gnu, g++-aarch64-linux-gnu, qemu-user.
set -eu
cd "$(dirname "$0")/.."
build=$(mkdir -p "${BUILD:-build/runtime}" && cd "${BUILD:-build/runtime}" && pwd)
cases=$build/cases
python=${PYTHON:-python}
CC=${CC:-cc} CXX=${CXX:-c++}
export CC CXX
step() { printf -- '-- %s\n' "$*"; }
need() { command -v "$1" >/dev/null || { echo "runtime/test.sh: $1 is missing; install $2" >&2; exit 1; }; }

deployments() {
    [ -f "$cases/plain/tolerance" ] && return
    step "deployments for the tests"
    "$python" tests/c_deployments.py "$cases"
}

# configure_and_build NAME OPTION...
configure_and_build() {
    name=$1
    shift
    generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
    cmake -S runtime -B "$build/$name" -G "$generator" -DDNA_WERROR=ON -DDNA_TESTS=ON \
        -DDNA_TEST_DEPLOYMENTS="$cases" "$@" >"$build/$name.log" 2>&1 || { cat "$build/$name.log"; return 1; }
    cmake --build "$build/$name" >>"$build/$name.log" 2>&1 || { cat "$build/$name.log"; return 1; }
}

run_tests() { ctest --test-dir "$build/$1" --output-on-failure --no-tests=error; }

headers() {
    step "headers alone, every warning an error"
    strict="-Wall -Wextra -pedantic -Werror -fsyntax-only -Icsrc -Iruntime"
    for standard in c99 c11; do echo '#include "dna_runtime.h"' | $CC -x c -std=$standard $strict -; done
    for standard in c++11 c++20; do echo '#include "dna_runtime.h"' | $CXX -x c++ -std=$standard $strict -; done
    for standard in c++17 c++20; do echo '#include "dna_runtime.hpp"' | $CXX -x c++ -std=$standard $strict -; done
}

# The lines on standard input are symbols; all begin with dna_, and there are some.
only_dna() {
    awk '{ print $NF }' | sort -u | awk '/^dna_/ { good++; next } { print "exported: " $0; bad++ } END { exit bad || !good }'
}

# exits STATUS COMMAND...
exits() {
    wanted=$1 status=0
    shift
    "$@" >"$build/exits.log" 2>&1 || status=$?
    [ $status = "$wanted" ] || { echo "exit status $status, not $wanted: $*"; cat "$build/exits.log"; return 1; }
}

# What the example says of wrong calls; $1 is its path.
wrong_calls() {
    deploy=$cases/plain/deploy image=$cases/plain/input_0.npy
    exits 0 "$1" --help
    exits 0 "$1" --version
    exits 2 "$1"
    exits 2 "$1" "$deploy"
    exits 2 "$1" "$deploy" "$image" --target Nonsense
    exits 2 "$1" "$deploy" "$image" --repeat 0
    exits 2 "$1" "$deploy" "$image" --threads 65
    exits 2 "$1" "$deploy" "$image" --std 0
    exits 2 "$1" "$deploy" "$image" --mean 1,2
    exits 2 "$1" "$deploy" "$image" --no-such-option
    exits 1 "$1" "$build" "$image"
    exits 1 "$1" "$deploy" "$image" "$image"
    exits 1 "$1" "$deploy" "$image.nowhere"
    exits 1 "$1" "$deploy" "$image" --output 1
    exits 1 "$1" "$deploy" "$image" --labels nowhere.txt
    exits 1 "$1" "$cases/residual/deploy" "$image"
    exits 1 "$1" "$deploy" "$image" --device emulated:4711
}

native() {
    deployments
    step "native build, ctest"
    configure_and_build native
    run_tests native
    step "exported symbols"
    nm -D --defined-only "$build/native/libdna_runtime.so" | only_dna
    nm -g --defined-only "$build/native/libdna_runtime.a" | awk 'NF == 3' | only_dna
    step "from Python's ctypes"
    "$python" runtime/tests/from_ctypes.py "$build/native/libdna_runtime.so" "$cases/plain"
    step "example"
    "$build/native/examples/classify" "$cases/plain/deploy" "$cases/plain/input_0.npy" --repeat 50 --threads 4
    wrong_calls "$build/native/examples/classify"
    "$build/native/examples/classify_cpp" "$cases/plain/deploy" "$cases/plain/input_0.npy"
}

# What a user does with the installed library: find_package, then pkg-config, shared and static.
install() {
    deployments
    [ -d "$build/native" ] || configure_and_build native
    step "installation"
    rm -rf "$build/prefix" "$build/consumer"
    cmake --install "$build/native" --prefix "$build/prefix" >/dev/null
    cmake -S runtime/examples -B "$build/consumer" -DCMAKE_PREFIX_PATH="$build/prefix" >"$build/consumer.log" 2>&1
    cmake --build "$build/consumer" >>"$build/consumer.log" 2>&1 || { cat "$build/consumer.log"; return 1; }
    "$build/consumer/classify" "$cases/plain/deploy" "$cases/plain/input_0.npy" --top 1
    need pkg-config pkg-config
    lib=$(dirname "$(find "$build/prefix" -name libdna_runtime.so)")
    export PKG_CONFIG_PATH="$lib/pkgconfig"
    sources="runtime/examples/classify.c runtime/examples/files.c runtime/examples/preprocess.c"
    $CC -std=c11 -D_GNU_SOURCE $sources $(pkg-config --cflags --libs dna_runtime) -lm -Wl,-rpath,"$lib" -o "$build/pc_shared"
    $CC -std=c11 -D_GNU_SOURCE $sources $(pkg-config --cflags dna_runtime) "$lib/libdna_runtime.a" \
        $(pkg-config --static --libs-only-other dna_runtime) -lm -o "$build/pc_static"
    for program in pc_shared pc_static; do
        "$build/$program" "$cases/plain/deploy" "$cases/plain/input_0.npy" --top 1 >/dev/null
    done
    ldd "$build/pc_static" | grep -q dna_runtime && { echo "pc_static needs the shared library" >&2; return 1; }
    return 0
}

# on_boards COMMAND...: with two emulated boards, which are processes of their own; BOARDS has their addresses.
on_boards() {
    XDG_RUNTIME_DIR=$build/boards
    export XDG_RUNTIME_DIR
    mkdir -p "$XDG_RUNTIME_DIR"
    chmod 700 "$XDG_RUNTIME_DIR"
    "$python" -m mera_torch.device --platform DNAF132S0001 --count 2 >"$build/boards.log" 2>&1 &
    boards=$! status=0
    for _ in $(seq 600); do
        grep -q ready: "$build/boards.log" && break
        sleep 0.1
    done
    BOARDS=$(sed -n 's/^ready: //p' "$build/boards.log")
    [ -n "$BOARDS" ] || { cat "$build/boards.log"; status=1; }
    [ $status = 0 ] && { "$@" || status=1; }
    kill $boards
    wait $boards || true
    unset XDG_RUNTIME_DIR
    return $status
}

# The same bytes from a board, and two boards that requests take turns on. $1: folder of the build, then an emulator.
ip() {
    built=$1
    shift
    "$@" "$built/tests/same_bytes" IP "$cases"/*/ &&
        "$@" "$built/examples/classify" "$cases/plain/deploy" "$cases/plain/input_0.npy" --repeat 20 --threads 4 \
            $(printf -- '--device %s ' $BOARDS)
}

device() {
    deployments
    [ -d "$build/native" ] || configure_and_build native
    step "target IP on emulated boards"
    on_boards ip "$build/native"
}

sanitize() {
    deployments
    # libgomp is not instrumented, so that threads of its own would be reported.
    for sanitizer in address,undefined thread; do
        step "ctest with -fsanitize=$sanitizer"
        name=sanitize_$(echo "$sanitizer" | cut -d, -f1)
        configure_and_build "$name" -DDNA_SANITIZE=$sanitizer -DDNA_OPENMP=OFF -DDNA_EXAMPLES=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
        ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 TSAN_OPTIONS=halt_on_error=1 run_tests "$name"
        "$build/$name/examples/classify" "$cases/plain/deploy" "$cases/plain/input_0.npy" --repeat 40 --threads 8 >/dev/null
    done
}

cross() {
    deployments
    need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
    need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
    need qemu-aarch64 qemu-user
    step "aarch64 under qemu: the same bytes"
    configure_and_build aarch64 -DCMAKE_TOOLCHAIN_FILE=aarch64-linux-gnu.cmake
    run_tests aarch64
    qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/aarch64/examples/classify" "$cases/plain/deploy" \
        "$cases/plain/input_0.npy" --repeat 8 --threads 2
    step "aarch64 under qemu, target IP on emulated boards"
    on_boards ip "$build/aarch64" qemu-aarch64 -L /usr/aarch64-linux-gnu
}

for part in ${*:-headers native install device sanitize cross}; do
    case $part in
    headers | native | install | device | sanitize | cross) $part ;;
    *) echo "usage: runtime/test.sh [headers|native|install|device|sanitize|cross]..." >&2; exit 2 ;;
    esac
done
