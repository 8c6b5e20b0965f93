/* A 32-bit multiboot image that goes to 64-bit mode by itself, enables the bus lock debug
   exception, takes a split lock at CPL 3, and reports DR6 over the serial port and port 0xF4. */

    .set SERIAL, 0x3f8
    .set DEBUG_EXIT, 0xf4
    .set DEBUGCTL, 0x1d9
    .set EFER, 0xc0000080

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

    .text
    .code32
    .globl _start
_start:
    mov $stack_top, %esp
    cmp $0x2badb002, %eax
    jne fail32
    mov 16(%ebx), %esi              /* the command line */
    call print32
    mov $newline, %esi
    call print32
    mov 44(%ebx), %ecx              /* the last entry of the memory map: where memory ends */
    add 48(%ebx), %ecx
    mov -20(%ecx), %eax
    add -12(%ecx), %eax
    mov %eax, memory_end

    movl $page_directory + 7, page_pointers
    movl $page_pointers + 7, page_top
    movl $0x87, page_directory
    movl $0x200087, page_directory + 8
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
    or $0x80000000, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $start64

print32:
    mov $SERIAL, %dx
1:  lodsb
    test %al, %al
    jz 2f
    outb %al, %dx
    jmp 1b
2:  ret

fail32:
    mov $0x7f, %al
    outb %al, $DEBUG_EXIT

    .code64
start64:
    mov $0x10, %eax
    mov %eax, %ss
    mov $tss, %eax                  /* the descriptor's base; below 16 MiB here */
    mov %ax, gdt_tss + 2
    shr $16, %eax
    mov %al, gdt_tss + 4
    mov $0x28, %eax
    ltr %ax
    mov $debug_handler, %eax
    mov %ax, idt + 16
    shr $16, %eax
    mov %ax, idt + 22
    lidt idt_pointer

    mov memory_end, %eax
    call print_hex
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    shr $24, %ecx                   /* BUS_LOCK_DETECT */
    and $1, %ecx
    mov %ecx, %eax
    call print_hex

    mov $DEBUGCTL, %ecx
    mov $4, %eax                    /* BLD */
    xor %edx, %edx
    wrmsr

    lock incl split                 /* at CPL 0: silent */
    pushq $0x23
    pushq $stack_top
    pushq $2
    pushq $0x1b
    pushq $user
    iretq

user:
    lock incl aligned               /* takes no bus lock */
    lock incl split
after:
    int3                            /* no handler: a triple fault if nothing trapped */

debug_handler:
    mov %dr6, %rax
    call print_hex
    mov (%rsp), %rax
    sub $after, %eax
    call print_hex
    mov split, %eax
    call print_hex
    mov $0x15, %al
    outb %al, $DEBUG_EXIT
1:  hlt
    jmp 1b

print_hex:                          /* the low half of RAX */
    mov %eax, %ebx
    mov $8, %ecx
    mov $SERIAL, %edx
1:  rol $4, %ebx
    mov %ebx, %eax
    and $15, %eax
    mov digits(%rax), %al
    outb %al, %dx
    dec %ecx
    jnz 1b
    mov $10, %al
    outb %al, %dx
    ret

    .data
digits:  .ascii "0123456789abcdef"
newline: .asciz "\n"
    .align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 08 code, 64 bits */
    .quad 0x00cf93000000ffff        /* 10 data */
    .quad 0x00affb000000ffff        /* 18 code, 64 bits, CPL 3 */
    .quad 0x00cff3000000ffff        /* 20 data, CPL 3 */
gdt_tss:
    .quad 0x0000890000000067, 0
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt
idt_pointer:
    .word 31
    .quad idt
    .align 8
tss:
    .long 0
    .quad stack_top
    .fill 92, 1, 0
    .align 8
idt:
    .quad 0, 0
    .quad 0x00008e0000080000, 0     /* #DB */
    .align 64
aligned: .long 0
    .fill 0x3e - 4, 1, 0
split:   .long 40
memory_end: .long 0

    .bss
    .align 4096
page_top:       .skip 4096
page_pointers:  .skip 4096
page_directory: .skip 4096
    .skip 4096
stack_top:
