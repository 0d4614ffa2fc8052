# Sourced by tpu_vm.sh: what a --type stands for. From docs.cloud.google.com:
#   tpu/docs/v4, v5e, v5p, v6e, tpu7x          sizes and topologies
#   tpu/docs/runtimes                          runtime versions of the Cloud TPU API
#   compute/docs/tpus/tpu-machines             machine types of Compute Engine
#   tpu/docs/tpu-os-images                     image families of Compute Engine

by_chips='1=1x1 4=2x2 8=2x4 16=4x4 32=4x8 64=8x8 128=8x16 256=16x16'
by_cores='8=2x2x1 16=2x2x2 32=2x2x4 64=2x4x4 128=4x4x4 256=4x4x8 512=4x8x8 1024=8x8x8'
by_cores+=' 2048=8x8x16 4096=8x16x16'
by_shape="1x1x1=1x1x1 $(sed 's/[0-9]*=\([0-9x]*\)/\1=\1/g' <<<"$by_cores")"

topology='' chips='' devices='' target='' apis='' runtime='' image='' machine='' hosts=''

# Sets $topology, $chips, $devices (as JAX counts them), $target (as pinjax.compile writes it),
# $apis (the ones that offer the type, the default first), $runtime for the Cloud TPU API, and
# $image, $machine and $hosts for Compute Engine. Refuses a type that none of the pages lists.
resolve_type() {
  local generation=${type%-*} size=${type##*-} sizes pair per_chip=1
  apis=tpu runtime=tpu-ubuntu2204-base image=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e
  case $generation in
    v2) sizes='8=2x2 32=4x4 128=8x8 256=8x16 512=16x16' per_chip=2 ;;
    v3) sizes='8=2x2 32=4x4 128=8x8 256=8x16 512=16x16 1024=16x32 2048=32x32' per_chip=2 ;;
    v4) sizes=$by_cores ;;
    v5litepod) sizes=$by_chips runtime=v2-alpha-tpuv5-lite ;;
    v5p) sizes="$by_cores 8192=16x16x16 12288=16x16x24" apis='compute tpu' runtime=v2-alpha-tpuv5 ;;
    v6e) sizes=$by_chips apis='compute tpu' runtime=v2-alpha-tpuv6e ;;
    tpu7x) sizes=$by_shape apis=compute image=ubuntu-accel-2404-amd64-tpu-tpu7x per_chip=2 ;;
    *) fail "--type=$type: expected v2-, v3-, v4-, v5litepod-, v5p-, v6e- or tpu7x- and a size" ;;
  esac
  for pair in $sizes; do
    if [ "${pair%=*}" = "$size" ]; then topology=${pair#*=}; fi
  done
  [ -n "$topology" ] ||
    fail "--type=$type: expected $generation- and one of $(sed 's/=[^ ]*//g' <<<"$sizes")"

  chips=$((${topology//x/*})) target=${generation/v5litepod/v5e}:$topology
  devices=$((per_chip * chips))
  hosts=$(((chips + 3) / 4))  # in a slice of several hosts, each has four chips
  case $generation-$chips in
    v5litepod-8) hosts=1 ;;
    v5p-*) machine=ct5p-hightpu-4t ;;
    v6e-1) machine=ct6e-standard-1t ;;
    v6e-8) machine=ct6e-standard-8t hosts=1 ;;
    v6e-*) machine=ct6e-standard-4t ;;
    tpu7x-1) machine=tpu7x-standard-1t ;;
    tpu7x-*) machine=tpu7x-standard-4t ;;
  esac
}
