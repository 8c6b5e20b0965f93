/* 64-bit guests of the hypervisor's benchmarks; r8 says how often, rdi where the
   data is.  BODY is one of these. */

.code64
.macro IDENTIFY
        xor     %eax, %eax
        cpuid
.endm

.macro COMPUTE
        add     %rbx, %rax
        rol     $7, %rax
        xor     %rax, %rbx
        imul    %rcx, %rax
        and     $0xfffc, %ecx
        add     %eax, 0x60000(%rdi, %rcx)
        mov     0x60000(%rdi, %rcx), %ebx
        inc     %ecx
.endm

/* A split lock at CPL 3; its handler below is for vector 1. */
.macro SPLIT
        lock addl $1, 0x5003e
.endm

        .globl  _start
_start:
1:      BODY
        dec     %r8
        jnz     1b
        mov     %cs, %eax
        test    $3, %al
        jnz     2f
        hlt
2:      out     %al, $0xf4

        .balign 16
handler:
        push    %rax
        mov     $0xffff0ff0, %eax
        mov     %rax, %dr6
        incq    0x51000
        pop     %rax
        iretq
