# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""imafs: the IMA directory of securityfs as a FUSE filesystem, on a software TPM."""

__version__ = "0.1.0"
