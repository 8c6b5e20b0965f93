/* 32-bit code, flat and without paging, CR4 = 0: a loop that computes, alone or as an image. */

.code32
.macro COMPUTE
        add     %ebx, %eax
        rol     $7, %eax
        xor     %eax, %ebx
        imul    %ecx, %eax
        and     $0xfffc, %ecx
        add     %eax, 0x60000(%ecx)
        mov     0x60000(%ecx), %ebx
        inc     %ecx
.endm

.macro PORT port, value
        mov     $\value, %al
        out     %al, $\port
.endm

#ifdef IMAGE
        /* The header says where the image goes, for it is not ELF. */
        .long   0x1badb002, 1 << 16, -(0x1badb002 + (1 << 16))
        .long   0x100000, 0x100000, 0, 0, _start
#endif

        .globl  _start
_start:
        xor     %ecx, %ecx
#ifdef PORTS
        mov     $COUNT, %esi
1:      outl    %eax, $0xe0
        dec     %esi
        jnz     1b
#else
#ifdef RATE
        /* The timer's vector, 20h, in a table at 70000h; other lines stay closed. */
        mov     $0x70000 + 8 * 0x20, %edi
        mov     $tick, %eax
        movw    %ax, (%edi)
        movw    $0x08, 2(%edi)
        movw    $0x8e00, 4(%edi)
        shr     $16, %eax
        movw    %ax, 6(%edi)
        lidt    table
        PORT    0x20, 0x11
        PORT    0x21, 0x20
        PORT    0x21, 0x04
        PORT    0x21, 0x01
        PORT    0x21, 0xfe
        PORT    0x43, 0x34
        PORT    0x40, (1193182 / RATE) & 0xff
        PORT    0x40, (1193182 / RATE) >> 8
        mov     $COUNT / 2, %esi
1:      COMPUTE
        dec     %esi
        jnz     1b
        sti
        mov     $COUNT / 2, %esi
#else
        mov     $COUNT, %esi
#endif
1:      COMPUTE
        dec     %esi
        jnz     1b
#endif
        cli
#ifdef IMAGE
        PORT    0xf4, 0x2a
#endif
        hlt

#ifdef RATE
tick:
        push    %eax
        incl    0x71000
        PORT    0x20, 0x20
        pop     %eax
        iret

        .balign 8
table:  .word   0x7ff
        .long   0x70000
#endif
