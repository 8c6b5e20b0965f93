/* A boot sector: real mode at 0x7c00, without a BIOS's services.  Reports a split lock in real mode
   and one in 16-bit protected mode over the serial port. */

    .set SERIAL, 0x3f8

    .code16
    .text
    .globl _start
_start:
    cli
    ljmp $0, $1f                    /* firmware may have come with another CS */
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    movl $0x00ff00ff, split
    mov $real, %si
    call print
    lock incl split
    mov split, %ax
    call print_word

    lgdt gdt_pointer
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmp $0x08, $protected
protected:
    mov $0x10, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $protected_text, %si
    call print
    mov $0x1234, %ax
    xchg %ax, split + 1             /* locked by itself, and not split */
    lock addw $0x0f0f, split + 2
    mov split, %ax
    call print_word
    mov split + 2, %ax
    call print_word

    mov %cr0, %eax
    and $0xfe, %al
    mov %eax, %cr0
    ljmp $0, $back
back:
    xor %ax, %ax
    mov %ax, %ds
    mov $done, %si
    call print
    mov $0x21, %al
    out %al, $0xf4
1:  hlt
    jmp 1b

print:
    mov $SERIAL, %dx
1:  lodsb
    test %al, %al
    jz 2f
    out %al, %dx
    jmp 1b
2:  ret

print_word:                         /* AX in hexadecimal, and a line end */
    mov $4, %cx
    mov %ax, %bx
1:  rol $4, %bx
    mov %bl, %al
    and $15, %al
    cmp $10, %al
    sbb $0x69, %al
    das
    mov $SERIAL, %dx
    out %al, %dx
    loop 1b
    mov $10, %al
    out %al, %dx
    ret

real:           .asciz "real mode "
protected_text: .asciz "16-bit protected mode "
done:           .asciz "and back\n"
    .align 8
gdt:
    .quad 0
    .quad 0x00009b000000ffff        /* 08 code, 16 bits */
    .quad 0x000093000000ffff        /* 10 data */
gdt_pointer:
    .word 23
    .long gdt
    .org 510
    .word 0xaa55

    .set split, 0x7e3e
