# SPDX-License-Identifier: GPL-2.0-only OR MIT
#
# The uses of files that are compared with a kernel's list: run by any sh, as root, in a
# directory that holds what uses.py puts there. $1 is the program of use.c. Each line with a
# number is one use.
U=$1
u1() { "$U" 0 0 exec bin/hello; }            # a program
u2() { "$U" 0 0 exec bin/hello; }            # the same again
u3() { "$U" 1000 1000 exec bin/by-user; }    # a program, as a user
u4() { "$U" 0 0 exec bin/script; }           # a script with its interpreter
u5() { "$U" 1000 1000 exec bin/script-2; }   # the same by a user, interpreter known
u6() { "$U" 0 0 exec lib/ld.so --library-path lib bin/dynamic; } # a shared library
u7() { "$U" 1000 1000 exec lib/ld.so --library-path lib-2 bin/dynamic; } # another, by a user
u8() { "$U" 0 0 read data; }                 # read as root
u9() { "$U" 0 0 read data; }                 # the same again
u10() { "$U" 1000 1000 read users; }         # read as a user
u11() { "$U" 1000 0 read effective; }        # as effective root
u12() { "$U" 0 1000 read real; }             # as real root only
u13() { echo changed > data; "$U" 0 0 read data; }
u14() { echo changed > data; "$U" 0 0 read data; } # unchanged content, written anew
u15() { touch data; "$U" 0 0 read data; }
u16() { chmod 600 data; "$U" 0 0 read data; }
u17() { "$U" 0 0 append data; "$U" 0 0 read data; }
u18() { mv data moved; "$U" 0 0 read moved; } # renamed: the kernel goes by the inode
u19() { ln moved linked; "$U" 0 0 read linked; } # a hard link: likewise
u20() { echo replaced > new; mv new moved; "$U" 0 0 read moved; } # another inode
u21() { cp linked copied; "$U" 0 0 read copied; } # the same content, another name
u22() { "$U" 0 0 read "$LONG/$LONG"; }       # a name of 300 characters
u23() { "$U" 0 0 read "with two spaces"; }
u24() { "$U" 0 0 read "with
newline"; }
u25() { "$U" 0 0 read "täb	ünd UTF-8"; }
u26() { "$U" 0 0 read empty; }
u27() { "$U" 0 0 read large; }
u28() { "$U" 0 0 rdwr both; }                # open for reading and writing
u29() { "$U" 0 0 new made; }                 # made by that: acc_mode is 0
u30() { "$U" 0 0 read made; }
u31() { "$U" 0 0 append written; }           # for writing only
u32() { "$U" 0 0 exec symlink; }             # through a symbolic link
u33() { "$U" 0 0 read symlinked; }
u34() { "$U" 0 0 path unread; }              # O_PATH opens nothing
u35() { "$U" 0 0 openat2 by-openat2; }
u36() { "$U" 1000 1000 exec bin/setuid; }
u37() { "$U" 0 0 deleted bin/deleted; }
u38() { "$U" 1000 1000 read lib/read-by-user.so; } # a library that is only read
u39() { "$U" 1000 1000 map mapped; }         # data that is mapped as a program
u40() { "$U" 0 0 direct direct; }            # O_DIRECT
u41() { "$U" 0 0 open_writers shared; }
u42() { "$U" 0 0 ToMToU shared; }
u43() { "$U" 0 0 read shared; }
u44() { "$U" 0 0 truncate cut; "$U" 0 0 read cut; "$U" 0 0 truncate cut; }
u45() { mkdir sub; echo below > sub/file; "$U" 0 0 read sub/file; } # a new directory
u46() { mv sub sub-2; "$U" 0 0 read sub-2/file; echo more > sub-2/more; "$U" 0 0 read sub-2/more; }
u47() { rm copied; echo changed > copied; "$U" 0 0 read copied; } # an inode made anew
u48() { sh scripts/read; }                   # a script that sh reads
u49() { "$U" 1000 1000 exec bin/hello; }     # what root has had measured
for number in $(seq 49); do u$number; done
