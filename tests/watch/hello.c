// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The smallest program; built with another TAG it is another file. */
__attribute__((used)) static const char tag[] = TAG;

void _start(void)
{
#ifdef LIBRARY
	extern int library(void);
	library();
#endif
#if defined(__x86_64__)
	__asm__ volatile("syscall" : : "a"(60L), "D"(0L));
#else
	register long number __asm__("x8") = 93, status __asm__("x0") = 0;
	__asm__ volatile("svc 0" : : "r"(number), "r"(status));
#endif
	for (;;)
		;
}
