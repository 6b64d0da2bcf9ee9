#!/bin/sh
# What udhcpc (udhcpc(8), -s) runs with its answer: tell it to guest.py, which configures the link itself.
[ "$1" != bound ] || printf '%s=%s\n' ip "${ip-}" mask "${mask-}" router "${router-}" dns "${dns-}" \
    search "${search-}" domain "${domain-}" hostname "${hostname-}" lease "${lease-}" mtu "${mtu-}"
