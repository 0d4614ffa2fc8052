import math, flax.linen as nn, jax, jax.numpy as jnp
from pinjax.distributed import sharded_table
from pinjax.models import features, temperature
class PinSage(nn.Module):
    layers:int; width:int; message_width:int; embedding_dim:int; pooling:str; dtype:str; num_items:int; num_tokens:int; token_buckets:int; token_dim:int; id_dim:int; id_buckets:int; log_degree:bool; tables:sharded_table.Layout
    def setup(self):
        self.q=[nn.Dense(self.message_width) for _ in range(self.layers)]
        self.w=[nn.Dense(self.width) for _ in range(self.layers)]
        self.g1=nn.Dense(self.width); self.g2=nn.Dense(self.embedding_dim,use_bias=False)
        self.gw=nn.Dense(self.width); self.gg1=nn.Dense(self.width); self.gg2=nn.Dense(self.embedding_dim,use_bias=False)
        self.temperature=temperature.Temperature()
        if self.id_dim: self.id=self.param("id_embedding",nn.initializers.normal(0.02),(self.num_items,self.id_dim))
    def __call__(self,*a):
        z=self.inputs(*a)
        for l in range(self.layers): z=self.combine(l,z,self.messages(l,z))
        self.head(z); self.group(z,jnp.zeros((1,1),jnp.int32),jnp.ones((1,1))); self.scale(); return z
    def inputs(self,rows,content,log_degree,tokens,segments):
        p=[]
        if content is not None:
            v=self.tables.gather(content,rows).astype(jnp.float32); p.append(features.unit_length(v)*math.sqrt(v.shape[-1]))
        if log_degree is not None: p.append(self.tables.gather(log_degree,rows)[:,None])
        if self.id_dim: p.append(self.id[jnp.maximum(rows,0)]*self.id_dim**.5)
        return jnp.where(rows[:,None]>=0,jnp.concatenate(p,1),0)
    def messages(self,l,h): return nn.relu(self.q[l](h))
    def pool(self,m,n,w):
        return jnp.einsum("nt,ntm->nm",jnp.where(n>=0,w,0),m[jnp.maximum(n,0)])
    def combine(self,l,h,p): return features.unit_length(nn.relu(self.w[l](jnp.concatenate([h,p],1))))
    def head(self,h): return features.unit_length(self.g2(nn.relu(self.g1(h))))
    def group(self,h,n,w): return features.unit_length(self.gg2(nn.relu(self.gg1(features.unit_length(nn.relu(self.gw(self.pool(h,n,w))))))))
    def scale(self): return self.temperature()
