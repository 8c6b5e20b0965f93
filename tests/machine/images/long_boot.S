/* Brings the processors of a 32-bit multiboot image to 64-bit mode and calls boot_processor(info),
   or application_processor(number) on those that a SIPI to TRAMPOLINE has started. */

    .set EFER, 0xc0000080
    .set TRAMPOLINE, 0x8000
    .set STACK, 8192

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .text
    .code32
    .globl _start
_start:
    mov %ebx, boot_information
    mov $page_directories, %edi     /* 4 GiB in pages of 2 MiB, for CPL 3 too */
    mov $0x87, %eax
1:  mov %eax, (%edi)
    add $0x200000, %eax
    jnc 2f
    xor %eax, %eax                  /* the last one: done */
2:  add $8, %edi
    test %eax, %eax
    jz 3f
    cmp $0xc0000087, %eax           /* devices from here on: not cached */
    jne 1b
    or $0x18, %eax
    jmp 1b
3:  mov $page_directories + 7, %eax
    mov $page_pointers, %edi
    mov $4, %ecx
4:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 4b
    movl $page_pointers + 7, page_top
    mov $trampoline, %esi
    mov $TRAMPOLINE, %edi
    mov $trampoline_end - trampoline, %ecx
    rep movsb
    lgdt gdt_pointer

to_long_mode:                       /* every processor, with the GDT loaded */
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr4, %eax
    or $0x20, %eax                  /* PAE */
    mov %eax, %cr4
    mov $page_top, %eax
    mov %eax, %cr3
    mov $EFER, %ecx
    rdmsr
    or $0x100, %eax                 /* LME */
    wrmsr
    mov %cr0, %eax
    and $0x9fffffff, %eax           /* caches on */
    or $0x80000000, %eax
    mov %eax, %cr0
    ljmp $0x08, $start64

    .code64
start64:
    mov $1, %ebx
    lock xadd %ebx, processors_met
    lea 1(%rbx), %eax
    imul $STACK, %eax, %esp
    add $stacks, %rsp
    mov %ebx, %edi
    test %ebx, %ebx
    jnz application_processor
    mov boot_information(%rip), %edi
    jmp boot_processor

/* run_user(argument, stack, &kernel stack of the TSS, function): at CPL 3, until INT 80h. */
    .globl run_user, user_gate
run_user:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdx)
    push $0x23
    push %rsi
    push $2
    push $0x2b
    push %rcx
    iretq
user_gate:
    add $40, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

    .code16
trampoline:
    cli
    lgdtl %cs:trampoline_gdt - trampoline
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $0x18, $to_long_mode
trampoline_gdt:
    .word 0xff
    .long gdt
trampoline_end:

    .data
    .align 8
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 08 code, 64 bits */
    .quad 0x00cf93000000ffff        /* 10 data */
    .quad 0x00cf9b000000ffff        /* 18 code, 32 bits */
    .quad 0x00cff3000000ffff        /* 20 data, CPL 3 */
    .quad 0x00affb000000ffff        /* 28 code, 64 bits, CPL 3 */
    .fill 0x100 - 0x30, 1, 0        /* 30 task state segments, two entries each */
gdt_pointer:
    .word 0xff
    .long gdt
boot_information: .long 0
processors_met: .long 0

    .bss
    .align 4096
page_top:         .skip 4096
page_pointers:    .skip 4096
page_directories: .skip 4 * 4096
stacks:           .skip 8 * STACK
    .section .note.GNU-stack, "", @progbits
