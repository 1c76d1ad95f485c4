# SPDX-License-Identifier: GPL-2.0-only OR MIT
# Reads a list as Perl programs do: reader.pl MODE LIST OUT
use strict;
use warnings;
use File::Copy;

my ($mode, $list, $out) = @ARGV;

sub slurp {
    my ($path) = @_;
    local $/;
    open my $file, '<', $path or die "$!\n";
    return <$file>;
}

my %modes = (
    size  => sub { print -s $list, ' ', (-z $list ? 'empty' : 'not empty'), "\n" },
    slurp => sub { print slurp($list) },
    sysread => sub {
        open my $file, '<', $list or die "$!\n";
        while ((my $got = sysread $file, my $buffer, 4096) > 0) { print "<$got>$buffer" }
    },
    'read-size' => sub {
        open my $file, '<', $list or die "$!\n";
        my $got = read $file, my $buffer, -s $list;
        print "$got\n", substr($buffer // '', 0, $got);
    },
    copy => sub {
        copy($list, $out) or print "copy: $!\n";
        print slurp($out) // '';
    },
    seek => sub {
        open my $file, '<', $list or die "$!\n";
        print seek($file, 0, 2) ? 'yes' : "$!", ' ', tell($file), "\n";
    },
);
$modes{$mode}->();
