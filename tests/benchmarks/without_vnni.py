"""Run a command as if the processor had AVX2 alone, without AVX-512, VNNI and AMX.

    python tests/benchmarks/without_vnni.py python tests/benchmarks/default_file.py ...

8-bit kernels are other ones there, and their sums of two products saturate at 16 bits. For Linux on x86-64 processors
whose /proc/cpuinfo lists ``cpuid_fault``, with a C compiler: the CPUID instruction raises a signal, and the handler of
a preloaded library answers for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = r"""
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

static struct sigaction previous;

static void answer(int signal, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];
    if (code[0] != 0x0f || code[1] != 0xa2) { /* no CPUID: a crash */
        sigaction(SIGSEGV, &previous, NULL);
        return;
    }
    unsigned leaf = registers[REG_RAX], part = registers[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __cpuid_count(leaf, part, a, b, c, d);
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 7 && part == 0) {
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX-512 */
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* AVX-512, VNNI among them */
        d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AVX-512, AMX */
    } else if (leaf == 7 && part == 1) {
        a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* VNNI for AVX, BF16, FP16, IFMA */
        d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* its other types, AVX10 */
    }
    registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void start(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigaction(SIGSEGV, &action, &previous);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) _exit(97);
}
"""


def main() -> None:
    if "cpuid_fault" not in Path("/proc/cpuinfo").read_text():
        raise SystemExit("This processor cannot hide its features (no cpuid_fault in /proc/cpuinfo).")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "cpuid.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-xc", "-", "-o", library], input=_SOURCE.encode(), check=True)
        raise SystemExit(subprocess.run(sys.argv[1:], env={**os.environ, "LD_PRELOAD": str(library)}).returncode)


if __name__ == "__main__":
    main()
