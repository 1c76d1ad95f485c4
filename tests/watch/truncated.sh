# SPDX-License-Identifier: GPL-2.0-only OR MIT
#
# Files that change their size, mode or name while a writer holds them: run by any sh, as root, in
# an empty directory; $L is the list. Each line that is printed is what one use has brought.
t() { n=$(grep -c " $PWD/$1\$" $L); z=$(grep " $PWD/$1\$" $L | grep -c ' 0000000000'); echo "$2: dig $((n-z)) zero $z"; }
prep() { echo content > $1; sleep 0.1; cat $1 >/dev/null; sleep 0.1; }
prep b1; exec 5>>b1; truncate -s 1 b1; cat b1 >/dev/null; t b1 "b1 ftruncate by another while a writer holds it"; exec 5>&-; cat b1 >/dev/null; t b1 "  closed, read"
prep b2; truncate -s 1 b2; cat b2 >/dev/null; t b2 "b2 ftruncate, no writer"
prep b3; exec 5>>b3; chmod 600 b3; cat b3 >/dev/null; t b3 "b3 chmod while a writer holds it"; exec 5>&-
prep b4; exec 5>>b4; touch b4; cat b4 >/dev/null; t b4 "b4 touch while a writer holds it"; exec 5>&-
prep b5; exec 5>>b5; exec 7>>b5; echo x >&7; exec 7>&-; cat b5 >/dev/null; t b5 "b5 one of two writers has closed"; exec 5>&-
prep b6; exec 5>>b6; : > b6; cat b6 >/dev/null; t b6 "b6 truncating open by another, closed, first writer holds"; exec 5>&-; cat b6; t b6 "  closed, read"
prep b7; exec 5>>b7; mv b7 b7n; cat b7n >/dev/null; t b7n "b7 renamed while a writer holds it"; exec 5>&-
prep b8; exec 5>b8; cat b8; t b8 "b8 truncating open held, read"; cat b8; t b8 "  read again"; echo new >&5; cat b8 >/dev/null; t b8 "  written, read"; exec 5>&-; cat b8 >/dev/null; t b8 "  closed, read"
prep b9; exec 5>>b9; chown 0:1 b9; cat b9 >/dev/null; t b9 "b9 chown while a writer holds it"; exec 5>&-
prep c1; exec 5>>c1; truncate -s 8 c1; cat c1 >/dev/null; t c1 "c1 ftruncate to the same size while a writer holds it"; exec 5>&-
prep c2; exec 5>>c2; truncate -s 100 c2; cat c2 >/dev/null; t c2 "c2 ftruncate to a larger size while a writer holds it"; exec 5>&-
prep c3; chmod 600 c3; cat c3 >/dev/null; t c3 "c3 chmod"; touch c3;  cat c3 >/dev/null; t c3 "c3 touch"
