# From the VMM's 32-bit entry to Rust in 64 bits.
#
# Source: xen/include/public/arch-x86/hvm/start_info.h: EBX holds the start information's physical
# address, segments are flat, paging and interrupts are off.

# How a VMM finds the entry: XEN_ELFNOTE_PHYS32_ENTRY.
.section .note.Xen, "a", @note
.align 4
    .long 4
    .long 8
    .long 18
    .asciz "Xen"
    .quad nano_entry

.section .text.entry, "ax", @progbits
.code32
.global nano_entry
nano_entry:
    cli
    cld
    movl $nano_stack_top, %esp
    movl %ebx, %edi

    # PAE. There is no SSE in the image: processors that are emulated by KVM lack most of it.
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $nano_pml4, %eax
    movl %eax, %cr3
    # EFER.LME
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    # Paging.
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    lgdt nano_gdt_pointer
    ljmp $8, $nano_long

.code64
nano_long:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    # The upper half is undefined after the switch.
    movl %edi, %edi
    call nano_main
    ud2

# Interrupts come only while the guest waits in `hlt`; all that they are for is to end that.
.align 16
.global nano_wake
nano_wake:
    pushq %rax
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

# One stub of 16 bytes for each exception: pushes its number and goes on together.
.align 16
.global nano_faults
nano_faults:
.set number, 0
.rept 32
    .align 16
    pushq $number
    jmp nano_fault_common
    .set number, number + 1
.endr
nano_fault_common:
    movq %rsp, %rdi
    andq $-16, %rsp
    call nano_fault
    ud2

# Page tables: the first 4 GiB as they are, in pages of 2 MiB; the last of them, where devices are,
# without caching. Made when the image is, so that no instruction is spent on them.
.section .tables, "aw", @progbits
.align 4096
nano_pml4:
    .quad nano_pdpt + 3
    .fill 511, 8, 0
nano_pdpt:
    .quad nano_pd + 0x0003
    .quad nano_pd + 0x1003
    .quad nano_pd + 0x2003
    .quad nano_pd + 0x3003
    .fill 508, 8, 0
nano_pd:
.set page, 0x83
.rept 1536
    .quad page
    .set page, page + 0x200000
.endr
.set page, page + 0x10
.rept 512
    .quad page
    .set page, page + 0x200000
.endr

.align 16
nano_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
nano_gdt_pointer:
    .word 23
    .long nano_gdt

.section .bss.stack, "aw", @nobits
.align 16
    .skip 65536
nano_stack_top:
