// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The smallest shared library. */
int library(void)
{
	return 0;
}
